"""Supervised warm-up: a model learns from worked solutions how to call the tool and name an answer (warm_up.md)."""
