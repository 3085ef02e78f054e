"""Bias, variance and mean squared error of estimators, and which of them is best for how many trajectories."""

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
"""Differences of squared biases below this are the rounding of float64 sums."""

_NO_GRADIENT: Final = 1e-13
"""A ‖∇J‖ below this share of the largest reward is rounding, and cannot serve as a unit."""


@dataclass(frozen=True)
class Row:
    """The figures of one estimator. Lengths are in units of ‖∇J(π)‖, variances in units of its square.

    Attributes:
        name: of the estimator.
        bias: ‖E_b ĝ − ∇J(π)‖.
        own_bias: ‖E_b ĝ − own target‖.
        own_target: its own target in words.
        cosine: of E_b ĝ and ∇J(π); NaN if one of them is 0.
        length: ‖E_b ĝ‖.
        variance: tr Cov_b(ĝ) for one trajectory.
        term_variance: the same for the term at each position, T numbers.
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
        """Return the mean squared error of the mean of N estimates: E‖mean − ∇J‖² = bias² + variance/N."""
        return self.bias**2 + self.variance / trajectories


@dataclass(frozen=True)
class Crossing:
    """With more than this number of trajectories, `later` has a smaller mean squared error than `earlier`."""

    trajectories: float
    earlier: str
    later: str


@dataclass(frozen=True)
class Analysis:
    """Everything that `ctpo theory` prints.

    Attributes:
        rows: one per estimator.
        unit: ‖∇J(π)‖, by which biases are divided; 1 if ∇J(π) is 0 to rounding.
        gradient_norm: ‖∇J(π)‖.
        rewards: J(b) and J(π).
        distance: how far π is from b, as `distances` returns it.
        spread: of the cumulative log ratio, by position.
    """

    rows: tuple[Row, ...]
    unit: float
    gradient_norm: float
    rewards: tuple[float, float]
    distance: dict[str, float]
    spread: LogRatioSpread

    def crossings(self) -> list[Crossing]:
        """Return all crossings in the order of their numbers of trajectories.

        Two estimators cross if the one with the larger variance has the smaller bias.
        """
        crossings = []
        for first in self.rows:
            for second in self.rows:
                gain = first.bias**2 - second.bias**2
                cost = second.variance - first.variance
                if gain > _ROUNDING and cost > 0:
                    crossings.append(Crossing(cost / gain, first.name, second.name))
        return sorted(crossings, key=lambda crossing: crossing.trajectories)

    def best(self) -> list[tuple[float, str]]:
        """Return pairs (N, name): from N trajectories up to the next pair, `name` has the least mean squared error.

        If two errors are equal, the row that comes first is named.
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
        """Return plain numbers for JSON, with null for NaN.

        Args:
            sizes: the numbers of trajectories for which the mean squared error is included.
        """
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
    """Return the exact figures of these estimators on a problem, in units of ‖∇J(π)‖.

    Args:
        problem: policies, reward and advantage.
        estimators: families or objectives, with different names.

    Example:
        >>> analysis = analyse(Setup(horizon=4).problem(), list(FAMILIES.values()))
        >>> analysis.rows[0].name
        'token'
    """
    by_name = moments(problem, {estimator.name: estimator.coefficients for estimator in estimators})
    norm, unit = problem.gradient.norm().item(), unit_of(problem)
    rows = tuple(_row(estimator, by_name[estimator.name], problem, unit) for estimator in estimators)
    rewards = tuple(expected_reward(p, problem.reward).item() for p in (problem.behaviour, problem.target))
    return Analysis(rows, unit, norm, (rewards[0], rewards[1]), distances(problem), log_ratio_spread(problem))


def unit_of(problem: Problem) -> float:
    """Return ‖∇J(π)‖, or 1 if that is 0 to rounding."""
    norm = problem.gradient.norm().item()
    return norm if norm > _NO_GRADIENT * problem.reward.abs().max().item() else 1.0


def _row(estimator: Estimator, exact: Moments, problem: Problem, unit: float) -> Row:
    mean, gradient = exact.mean, problem.gradient
    lengths = mean.norm() * gradient.norm()
    return Row(
        name=estimator.name,
        bias=(mean - gradient).norm().item() / unit,
        own_bias=(mean - estimator.own_target(problem)).norm().item() / unit,
        own_target=estimator.meaning,
        cosine=((mean * gradient).sum() / lengths).item() if lengths > 0 else math.nan,
        length=mean.norm().item() / unit,
        variance=exact.variance / unit**2,
        term_variance=tuple((exact.term_variance / unit**2).tolist()),
    )


def distances(problem: Problem) -> dict[str, float]:
    """Return how far π is from b.

    Returns:
        `total_variation`: the largest total variation distance after any prefix. `kl`: KL(b ‖ π) of trajectories, in
        nats. `chi_square`: χ²(π ‖ b) of trajectories, which is Var(ρ_T). `ess`: 1 / (1 + chi_square).
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
