"""The ratio families without clipping: the coefficient of ∇log π(a_t|s_t) for every token of a trajectory.

An estimator is ĝ(o) = Σ_t k_t(o) ∇_θ log π(a_t|s_t), with o drawn from b. The coefficients are written here from their
formulas, without the objectives of the library, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ctpo.lab.theory.problems import Problem, Trajectories
from ctpo.lab.theory.values import policy_gradient, return_to_go

Coefficients = Callable[[Trajectories], Tensor]
"""A function from n trajectories to their coefficients k, [T, n]."""

OwnTarget = Callable[[Problem], Tensor]
"""A function from a problem to the gradient, [G, V], that an estimator would have in expectation if its weight
corrected exactly what it is meant to correct."""


@dataclass(frozen=True)
class Estimator:
    """One way to weight the terms of the policy gradient.

    Attributes:
        name: as the user calls it.
        coefficients: k of every token.
        own_target: the gradient that its weight is meant to give.
        meaning: its own target in words.
    """

    name: str
    coefficients: Coefficients
    own_target: OwnTarget
    meaning: str


def _steps(horizon: int) -> Tensor:
    return torch.arange(1, horizon + 1, dtype=torch.float64).unsqueeze(-1)


def _token(o: Trajectories) -> Tensor:
    return o.log_ratios.exp() * o.advantages


def _cumulative(o: Trajectories) -> Tensor:
    return o.log_ratios.cumsum(0).exp() * o.advantages


def _prefix_mean(o: Trajectories) -> Tensor:
    return (o.log_ratios.cumsum(0) / _steps(len(o.logps))).exp() * o.advantages


def _sequence(o: Trajectories) -> Tensor:
    return o.log_ratios.sum(0).exp() * o.advantages


def _sequence_mean(o: Trajectories) -> Tensor:
    return o.log_ratios.mean(0).exp() * o.advantages


def _min_prefix(o: Trajectories) -> Tensor:
    d = o.log_ratios
    before = torch.cat([torch.zeros_like(d[:1]), d.cummin(0).values[:-1]])
    return (d + before).exp() * o.advantages


def _unit(o: Trajectories) -> Tensor:
    return o.advantages


def _prefix_gradient(o: Trajectories) -> Tensor:
    # ∇ Σ_t ρ_t A_t = Σ_s ∇log π_s Σ_{t≥s} ρ_t A_t
    return _cumulative(o).flip(0).cumsum(0).flip(0)


def token_target(problem: Problem) -> Tensor:
    """Return Σ_t E[∇log π · E_b[A|s_t, a_t]] with s_t ∼ b and a_t ∼ π: only the action is corrected."""
    b, pi = problem.behaviour, problem.target
    return policy_gradient(pi, b, pi, problem.edge_advantages(b))


def prefix_target(problem: Problem) -> Tensor:
    """Return g^b = Σ_t E[∇log π · E_b[A|s_t, a_t]] with s_t, a_t ∼ π: the state and the action are corrected."""
    b, pi = problem.behaviour, problem.target
    return policy_gradient(pi, pi, pi, problem.edge_advantages(b))


def trajectory_target(problem: Problem) -> Tensor:
    """Return Σ_t E_π[∇log π · A]: everything is corrected."""
    pi = problem.target
    return policy_gradient(pi, pi, pi, problem.edge_advantages(pi))


def behaviour_target(problem: Problem) -> Tensor:
    """Return Σ_t E_b[∇log π · A]: nothing is corrected."""
    b, pi = problem.behaviour, problem.target
    return policy_gradient(pi, b, b, problem.edge_advantages(b))


def through_target(problem: Problem) -> Tensor:
    """Return ∇ Σ_t E[E_b[A|s_t, a_t]] with s_t, a_t ∼ π and the advantage held fixed; with A^b it is ∇J(π)."""
    b, pi = problem.behaviour, problem.target
    return policy_gradient(pi, pi, pi, return_to_go(pi, problem.edge_advantages(b)))


_TARGETS: Final[dict[str, tuple[OwnTarget, str]]] = {
    "token": (token_target, "states b, action π, rest b"),
    "prefix": (prefix_target, "states and action π, rest b"),
    "trajectory": (trajectory_target, "all π"),
    "behaviour": (behaviour_target, "all b"),
    "through": (through_target, "∇ of Σ_t E[prefix π, rest b]"),
}

_FAMILIES: Final[dict[str, tuple[Coefficients, str]]] = {
    "token": (_token, "token"),
    "cumulative": (_cumulative, "prefix"),
    "prefix-mean": (_prefix_mean, "prefix"),
    "sequence": (_sequence, "trajectory"),
    "sequence-mean": (_sequence_mean, "trajectory"),
    "min-prefix": (_min_prefix, "prefix"),
    "unit": (_unit, "behaviour"),
    "prefix-gradient": (_prefix_gradient, "through"),
}

FAMILIES: Final = {
    name: Estimator(name, coefficients, *_TARGETS[target])
    for name, (coefficients, target) in _FAMILIES.items()
}
"""The families by name. Their weights are r_t, ρ_t, ρ_t^(1/t), ρ_T, ρ_T^(1/T), r_t·min_{s<t} r_s, 1, and ρ_t
differentiated through the whole prefix."""
