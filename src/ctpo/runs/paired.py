"""Paired tests over seeds.

Runs of two objectives with the same seed see the same problems in the same order, and are measured on the same
held-out problems. The difference of such a pair has less noise than either score, so tests are made on differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ctpo.runs.means import Mean, mean


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The mean difference of pairs and its two-sided t-test."""

    difference: Mean
    t: float | None
    p: float | None
    """None where no test is possible: with fewer than two seeds, or if all differences are equal."""


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """Return the mean of one − other and Student's paired t-test of it, two-sided.

    Args:
        one: the scores of one objective, one per seed.
        other: the scores of the other objective, for the same seeds in the same order.

    Raises:
        ValueError: if the lengths differ or are 0.
    """
    if len(one) != len(other):
        raise ValueError(f"one: {len(one)} values against {len(other)}; give both one value per seed")
    difference = mean([a - b for a, b in zip(one, other, strict=True)])
    if not difference.stderr:
        return Paired(difference=difference, t=None, p=None)
    t = difference.value / difference.stderr
    return Paired(difference=difference, t=t, p=two_sided(t, difference.n - 1))


def two_sided(t: float, freedom: int) -> float:
    """Return the probability that |Student's t| exceeds |t|.

    It is the regularised incomplete beta function I_x(ν/2, 1/2) at x = ν/(ν + t²). The relative error is below 1e-11.

    Args:
        t: the statistic.
        freedom: ν, the degrees of freedom.

    Source: NIST Digital Library of Mathematical Functions, 8.17.22 (https://dlmf.nist.gov/8.17).
    """
    a, b = freedom / 2, 0.5
    x, y = freedom / (freedom + t * t), t * t / (freedom + t * t)
    if x == 0 or y == 0:  # t is infinite, or so small that its square is 0
        return 1 - y
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    power = math.exp(a * math.log(x) + b * math.log(y) - log_beta)  # x^a y^b / B(a, b)
    # Each fraction converges fast on its own side.
    if x < (a + 1) / (a + b + 2):
        return power / (a * _beta_fraction(a, b, x))
    return 1 - power / (b * _beta_fraction(b, a, y))


def _beta_fraction(a: float, b: float, x: float, terms: int = 200) -> float:
    """The continued fraction 1 + d_1/(1 + d_2/(1 + …)) of the incomplete beta function, from its last term."""
    value = 1.0
    for m in range(terms, 0, -1):
        value = 1 + m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) / value
        value = 1 - (a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1)) / value
    return value


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for the number of tests.

    If every corrected value below a level α is called significant, the chance of at least one false call is at most
    α. The i-th smallest of m p-values becomes max over j ≤ i of min(1, (m − j + 1) p_(j)). A test without a p-value
    stays None and does not count towards m.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    floor = 0.0
    for rank, (p, i) in enumerate(tested):
        floor = max(floor, min(1.0, (len(tested) - rank) * p))
        corrected[i] = floor
    return corrected
