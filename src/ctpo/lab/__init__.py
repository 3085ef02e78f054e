"""Experiments with the method: exact theory on small policies, and comparisons of objectives by training runs."""
