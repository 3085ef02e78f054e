"""Comparisons of objectives: a matrix of training runs, run side by side, and paired statistics over seeds."""
