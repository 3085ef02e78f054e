"""Objectives against each other: a matrix of runs, run side by side, and paired statistics over seeds."""
