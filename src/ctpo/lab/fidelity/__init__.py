"""Gradient fidelity: how each objective's off-policy gradient compares with the on-policy gradient of the target."""

from ctpo.lab.fidelity.run import fidelity
from ctpo.lab.fidelity.sizes import Sizes

__all__ = ["Sizes", "fidelity"]
