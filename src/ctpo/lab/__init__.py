"""Experiments of the method's own students: exact theory, and comparisons of objectives."""
