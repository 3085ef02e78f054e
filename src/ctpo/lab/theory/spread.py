"""The exact mean and standard deviation of the cumulative log ratio c_t = Σ_{s≤t} log π_s/b_s, by position."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctpo.lab.theory.problems import Problem
from ctpo.lab.theory.values import reach


@dataclass(frozen=True)
class LogRatioSpread:
    """Mean and standard deviation of c_t under b, in nats, for t = 1..T.

    Attributes:
        mean: −KL(b ‖ π) of the first t actions.
        std: the standard deviation. If increments are independent with one variance, it is √t times the first.
        exponent: the least-squares slope of log std against log t; NaN if fewer than two values are positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    exponent: float

    def as_dict(self) -> dict[str, object]:
        """Return plain numbers for JSON, with null for NaN."""
        exponent = None if math.isnan(self.exponent) else self.exponent
        return {"mean": self.mean, "std": self.std, "exponent": exponent}


def log_ratio_spread(problem: Problem) -> LogRatioSpread:
    """Return the exact moments of c_t over the trajectories of b."""
    b, pi = problem.behaviour, problem.target
    means, stds = [], []
    total = problem.reward.new_zeros(1)
    for states, old, new in zip(reach(b), b.log_probs, pi.log_probs, strict=True):
        total = (total.unsqueeze(-1) + new - old).reshape(-1)
        weight = (states.unsqueeze(-1) * old.exp()).reshape(-1)
        mean = (weight * total).sum()
        means.append(mean.item())
        stds.append((weight * (total - mean).square()).sum().sqrt().item())
    return LogRatioSpread(tuple(means), tuple(stds), _slope(stds))


def _slope(stds: list[float]) -> float:
    points = [(math.log(t), math.log(std)) for t, std in enumerate(stds, 1) if std > 0]
    if len(points) < 2:
        return math.nan
    x_mean = math.fsum(x for x, _ in points) / len(points)
    y_mean = math.fsum(y for _, y in points) / len(points)
    across = math.fsum((x - x_mean) ** 2 for x, _ in points)
    return math.fsum((x - x_mean) * (y - y_mean) for x, y in points) / across
