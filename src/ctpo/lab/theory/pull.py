"""What an estimator does when the reward says nothing, and what its weights cost in samples; exact, by enumeration."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ctpo.lab.theory.analysis import unit_of
from ctpo.lab.theory.families import Estimator
from ctpo.lab.theory.problems import Problem
from ctpo.lab.theory.trees import Chunk

_ROUNDING: Final = 1e-12
"""A pull below this, in ‖∇J‖, is the rounding of float64."""


@dataclass(frozen=True)
class Pull:
    """The expected gradient under advantages that are independent of everything, and the cost of the weights.

    The advantages are +a and −a with equal chances, the same at all tokens of a response. a is the mean of |A| of the
    problem. An honest estimator then has the expectation 0.

    Attributes:
        name: of the estimator.
        size: the length of the expected gradient, in units of ‖∇J(π)‖.
        back: its cosine with −∇KL(b ‖ π), the direction back to the behaviour policy; NaN without a pull.
        cost: the mean over positions of E_b[w²] / E_b[w]², where w is the weight of a token with A > 0. It says how
            many responses are worth one without weights, and it is 1/ESS of infinitely many responses. Infinite where
            a position has no weight left.
    """

    name: str
    size: float
    back: float
    cost: float


def pulls(problem: Problem, estimators: list[Estimator]) -> list[Pull]:
    """Return the pull of every estimator, in their order.

    Args:
        problem: policies, reward and advantage. Reward and advantage only give a and the unit.
        estimators: families or objectives.

    Example:
        problem = Setup(horizon=3).problem()
        len(pulls(problem, [objective_estimator("grpo", problem)]))  # 1
    """
    home = torch.zeros_like(problem.target.logits)
    means = [torch.zeros_like(home) for _ in estimators]
    moments = torch.zeros(len(estimators), 2, problem.tree.horizon, dtype=torch.float64)
    size = _mean_size(problem)
    with torch.no_grad():
        for chunk in problem.tree.chunks():
            o = problem.trajectories(chunk)
            home += _gradient(problem, chunk, o.probability.expand_as(o.logps))
            gain, harm = (
                dataclasses.replace(o, advantages=torch.full_like(o.logps, a)) for a in (size, -size)
            )
            for i, estimator in enumerate(estimators):
                weight = estimator.coefficients(gain)
                both = (weight + estimator.coefficients(harm)) / 2
                means[i] += _gradient(problem, chunk, o.probability * both)
                moments[i] += torch.stack([weight / size, (weight / size).square()]) @ o.probability
    norm = unit_of(problem)
    return [
        _pull(estimator.name, mean, home, norm, *moment)
        for estimator, mean, moment in zip(estimators, means, moments, strict=True)
    ]


def _gradient(problem: Problem, chunk: Chunk, weighted: Tensor) -> Tensor:
    """Σ over a chunk's trajectories and positions of weight · ∇log π, [G, V], from weights [T, n]."""
    total = torch.zeros_like(problem.target.logits)
    for t, weights in enumerate(weighted):
        edges = torch.zeros(problem.target.probs[t].numel(), dtype=torch.float64)
        edges[chunk.edges(t)] += chunk.sum_by_edge(t, weights)
        total += problem.target.level_gradient(t, edges)
    return total


def _pull(name: str, mean: Tensor, home: Tensor, norm: float, first: Tensor, second: Tensor) -> Pull:
    size = mean.norm().item() / norm
    lengths = (mean.norm() * home.norm()).item()
    back = (mean * home).sum().item() / lengths if size > _ROUNDING and lengths > 0 else math.nan
    cost = (second / first.square()).mean().item() if bool((first != 0).all()) else math.inf
    return Pull(name, size, back, cost)


def _mean_size(problem: Problem) -> float:
    """a: the mean of |A| over responses of b and their tokens; 1 where all advantages are 0."""
    total = 0.0
    for chunk in problem.tree.chunks():
        o = problem.trajectories(chunk)
        total += (o.advantages.abs().mean(0) @ o.probability).item()
    return total or 1.0
