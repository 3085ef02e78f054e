"""Responses sampled by a server."""
