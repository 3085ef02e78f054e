"""Gradient fidelity: how each objective's off-policy gradient compares with the on-policy gradient of the target."""

from ctpo.lab.fidelity.run import Sizes, fidelity

__all__ = ["Sizes", "fidelity"]
