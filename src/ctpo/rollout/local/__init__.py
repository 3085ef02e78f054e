"""Responses sampled by a transformers model in this process."""
