"""Responses sampled in this process."""
