"""Paired statistics over seeds.

Runs of two objectives with the same seed see the same problems in the same order and are measured on the same
held-out problems, so their difference is the quantity with the least noise; means and tests are taken over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds with its standard error (None for one seed)."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A paired difference over seeds and its two-sided t-test."""

    difference: Mean
    t: float | None
    p: float | None
    """None where there is no test: fewer than two seeds, or differences that are all alike."""


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error s/√n.

    Raises:
        ValueError: if there are none.
    """
    if not values:
        raise ValueError("values: none given; a mean needs at least one")
    n, center = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Mean(value=center, stderr=None, n=1)
    variance = math.fsum((value - center) ** 2 for value in values) / (n - 1)
    return Mean(value=center, stderr=math.sqrt(variance / n), n=n)


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """Student's paired t-test of one − other, two-sided.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(one) != len(other):
        raise ValueError(f"one: {len(one)} values against {len(other)}; pairs need as many of each")
    difference = mean([a - b for a, b in zip(one, other, strict=True)])
    if not difference.stderr:
        return Paired(difference=difference, t=None, p=None)
    t = difference.value / difference.stderr
    return Paired(difference=difference, t=t, p=float(2 * _student_t().sf(abs(t), difference.n - 1)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: the familywise error over all the tests given stays below the level.

    The i-th smallest of m p-values becomes max over j ≤ i of min(1, (m − j + 1) p_(j)); absent ones stay so and
    are not counted. Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for rank, (p, i) in enumerate(tested):
        floor = max(floor, min(1.0, (len(tested) - rank) * p))
        corrected[i] = floor
    return corrected


def _student_t() -> Any:
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError("the tests need scipy; install it with: pip install 'ctpo[compare]'") from None
    return t
