"""Responses sampled by a server, or by vLLM in this process."""
