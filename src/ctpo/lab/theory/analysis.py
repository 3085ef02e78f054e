"""Bias, variance, mean squared error against the number of trajectories, and where the families cross."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.lab.theory.families import Estimator
from ctpo.lab.theory.moments import Moments, moments
from ctpo.lab.theory.problems import Problem
from ctpo.lab.theory.spread import LogRatioSpread, log_ratio_spread
from ctpo.lab.theory.values import expected_reward, reach

_ROUNDING: Final = 1e-12
"""A squared bias below this share of the second moments involved is the rounding of float64 sums, not a bias."""


_NO_GRADIENT: Final = 1e-13
"""‖∇J‖ below this share of the largest reward is rounding: no unit to measure anything in."""


@dataclass(frozen=True)
class Row:
    """What is known of one estimator; lengths in units of ∇J's own.

    Attributes:
        name: of the estimator.
        bias: ‖E_b ĝ − ∇J(π)‖.
        own_bias: ‖E_b ĝ − own target‖.
        own_target: the own target in words.
        cosine: of E_b ĝ and ∇J(π), NaN where one is 0.
        length: ‖E_b ĝ‖.
        variance: tr Cov_b(ĝ) of one trajectory.
        term_variance: the same of every position's term, T numbers.
    """

    name: str
    bias: float
    own_bias: float
    own_target: str
    cosine: float
    length: float
    variance: float
    term_variance: tuple[float, ...]

    def error(self, trajectories: float) -> float:
        """E‖mean of N ĝ − ∇J‖² = bias² + variance/N."""
        return self.bias**2 + self.variance / trajectories


@dataclass(frozen=True)
class Crossing:
    """From `trajectories` on, `later` has a smaller mean squared error than `earlier`."""

    trajectories: float
    earlier: str
    later: str


@dataclass(frozen=True)
class Analysis:
    """Everything `ctpo theory` prints.

    Attributes:
        rows: one an estimator.
        unit: ‖∇J(π)‖, what biases are divided by (variances by its square); 1 where ∇J is 0, to rounding.
        gradient_norm: ‖∇J(π)‖.
        rewards: J(b), J(π).
        distance: see `distances`.
        spread: of the log ratio by position.
    """

    rows: tuple[Row, ...]
    unit: float
    gradient_norm: float
    rewards: tuple[float, float]
    distance: dict[str, float]
    spread: LogRatioSpread

    def crossings(self) -> list[Crossing]:
        """Every pair's N at which the one with the larger variance overtakes, in order of N."""
        found = []
        for first in self.rows:
            for second in self.rows:
                gain = first.bias**2 - second.bias**2
                cost = second.variance - first.variance
                if gain > _ROUNDING and cost > 0:
                    found.append(Crossing(cost / gain, first.name, second.name))
        return sorted(found, key=lambda crossing: crossing.trajectories)

    def best(self) -> list[tuple[float, str]]:
        """(N, name): from N trajectories on, up to the next entry, `name` has the least mean squared error.

        Equal errors go to the row that comes first.
        """
        current = min(self.rows, key=lambda row: row.error(1.0))
        ranges = [(1.0, current.name)]
        while True:
            gains = [
                ((row.variance - current.variance) / (current.bias**2 - row.bias**2), -row.variance, row)
                for row in self.rows
                if current.bias**2 - row.bias**2 > _ROUNDING
            ]
            later = [gain for gain in gains if gain[0] > ranges[-1][0]]
            if not later:
                return ranges
            at, _, current = min(later, key=lambda gain: gain[:2])
            ranges.append((at, current.name))

    def as_dict(self, sizes: tuple[int, ...]) -> dict[str, Any]:
        """Plain numbers for JSON; NaN becomes null."""
        return {
            "unit": self.unit,
            "gradient_norm": self.gradient_norm,
            "expected_reward": dict(zip(("behaviour", "target"), self.rewards, strict=True)),
            "distance": self.distance,
            "log_ratio": self.spread.as_dict(),
            "estimators": [
                {
                    **{key: _plain(value) for key, value in vars(row).items()},
                    "mean_squared_error": {str(n): row.error(n) for n in sizes},
                }
                for row in self.rows
            ],
            "best": [{"from_trajectories": n, "estimator": name} for n, name in self.best()],
            "crossings": [vars(crossing) for crossing in self.crossings()],
        }


def analyse(problem: Problem, estimators: list[Estimator]) -> Analysis:
    """Enumerate a problem exactly.

    Args:
        problem: policies, reward and advantage.
        estimators: families or objectives, with different names.

    Returns:
        The analysis, in units of ‖∇J(π)‖.
    """
    found = moments(problem, {estimator.name: estimator.coefficients for estimator in estimators})
    norm = problem.gradient.norm().item()
    unit = norm if norm > _NO_GRADIENT * problem.reward.abs().max().item() else 1.0
    rows = tuple(_row(estimator, found[estimator.name], problem, unit) for estimator in estimators)
    rewards = tuple(expected_reward(p, problem.reward).item() for p in (problem.behaviour, problem.target))
    return Analysis(rows, unit, norm, (rewards[0], rewards[1]), distances(problem), log_ratio_spread(problem))


def _row(estimator: Estimator, found: Moments, problem: Problem, unit: float) -> Row:
    mean, gradient = found.mean, problem.gradient
    lengths = mean.norm() * gradient.norm()
    return Row(
        name=estimator.name,
        bias=(mean - gradient).norm().item() / unit,
        own_bias=(mean - estimator.own_target(problem)).norm().item() / unit,
        own_target=estimator.meaning,
        cosine=((mean * gradient).sum() / lengths).item() if lengths > 0 else math.nan,
        length=mean.norm().item() / unit,
        variance=found.variance / unit**2,
        term_variance=tuple((found.term_variance / unit**2).tolist()),
    )


def distances(problem: Problem) -> dict[str, float]:
    """How far π is from b.

    Returns:
        total_variation: the largest over prefixes; kl: KL(b ‖ π) of trajectories, nats; chi_square: χ²(π ‖ b) of
        trajectories, which is Var(ρ_T); ess: 1 / (1 + chi_square).
    """
    b, pi = problem.behaviour, problem.target
    kl, second = torch.zeros((), dtype=torch.float64), problem.reward.new_ones(problem.tree.trajectories)
    for states, old, new in zip(reach(b), b.log_probs, pi.log_probs, strict=True):
        kl = kl + (states.unsqueeze(-1) * old.exp() * (old - new)).sum()
    for old, new in zip(reversed(b.log_probs), reversed(pi.log_probs), strict=True):
        second = ((2 * new - old).exp() * second.reshape(old.shape)).sum(-1)
    shift = max(0.5 * (p - q).abs().sum(-1).max().item() for p, q in zip(b.probs, pi.probs, strict=True))
    return {
        "total_variation": shift,
        "kl": kl.item(),
        "chi_square": second.item() - 1,
        "ess": 1 / second.item(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value
