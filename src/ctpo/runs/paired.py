"""Paired tests over seeds.

Runs of two objectives with the same seed see the same problems in the same order, and are measured on the same
held-out problems. The difference of such a pair has less noise than either score, so tests are made on differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctpo.extras import require
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
        UserError: if scipy is not installed and a test is possible.
    """
    if len(one) != len(other):
        raise ValueError(f"one: {len(one)} values against {len(other)}; give both one value per seed")
    difference = mean([a - b for a, b in zip(one, other, strict=True)])
    if not difference.stderr:
        return Paired(difference=difference, t=None, p=None)
    require("testing paired differences", "compare", "scipy")
    # The distribution of Student's t. scipy.stats has it too, but takes five times as long to import.
    from scipy.special import stdtr

    t = difference.value / difference.stderr
    return Paired(difference=difference, t=t, p=float(2 * stdtr(difference.n - 1, -abs(t))))


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
