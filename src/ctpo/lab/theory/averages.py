"""Averages over several draws of one problem: what holds on average, and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ctpo.lab.theory.analysis import Analysis
from ctpo.runs.means import mean


@dataclass(frozen=True)
class Average:
    """Figures of one estimator over several draws of the problem, in units of each draw's ‖∇J‖.

    Attributes:
        name: of the estimator.
        bias, bias_stderr: the mean of ‖E_b ĝ − ∇J‖ and its standard error over draws.
        own_bias, own_bias_stderr: the same against the estimator's own target.
        cosine: the mean cosine of E_b ĝ and ∇J.
        variance: the mean of tr Cov_b(ĝ).
        wins: the share of draws in which it has the least mean squared error, one value per number of trajectories.
            If two are equal, the estimator that is named first wins.
    """

    name: str
    bias: float
    bias_stderr: float
    own_bias: float
    own_bias_stderr: float
    cosine: float
    variance: float
    wins: tuple[float, ...]


def average(analyses: Sequence[Analysis], sizes: Sequence[int]) -> list[Average]:
    """Return one average per estimator.

    Args:
        analyses: of the draws; all have the same estimators in the same order.
        sizes: the numbers of trajectories for which `wins` is counted.
    """
    winners = [
        [min(analysis.rows, key=lambda row: row.error(size)).name for analysis in analyses] for size in sizes
    ]
    averages = []
    for index, first in enumerate(analyses[0].rows):
        rows = [analysis.rows[index] for analysis in analyses]
        bias, bias_stderr = _mean([row.bias for row in rows])
        own_bias, own_bias_stderr = _mean([row.own_bias for row in rows])
        averages.append(
            Average(
                name=first.name,
                bias=bias,
                bias_stderr=bias_stderr,
                own_bias=own_bias,
                own_bias_stderr=own_bias_stderr,
                cosine=_mean([row.cosine for row in rows])[0],
                variance=_mean([row.variance for row in rows])[0],
                wins=tuple(names.count(first.name) / len(names) for names in winners),
            )
        )
    return averages


def _mean(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error, NaN for a single value."""
    average = mean(values)
    return average.value, math.nan if average.stderr is None else average.stderr
