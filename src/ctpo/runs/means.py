"""Means and their standard errors: the one definition of both in this library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean of independent values and its standard error."""

    value: float
    stderr: float | None
    """None for a single value, which says nothing about the spread."""
    n: int


def mean(values: Sequence[float]) -> Mean:
    """Return the mean m of n values and its standard error sqrt(Σ (x − m)² / (n − 1) / n).

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("values: none given; a mean needs at least one")
    n, value = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Mean(value=value, stderr=None, n=1)
    variance = math.fsum((each - value) ** 2 for each in values) / (n - 1)
    return Mean(value=value, stderr=math.sqrt(variance / n), n=n)
