"""What a critic's error does to the policy gradient: exact bias and variance, by enumeration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ctpo.lab.theory.analysis import unit_of
from ctpo.lab.theory.families import FAMILIES
from ctpo.lab.theory.moments import moments
from ctpo.lab.theory.policies import Policy
from ctpo.lab.theory.problems import Problem, Trajectories
from ctpo.lab.theory.trees import Chunk
from ctpo.lab.theory.values import action_values, reach
from ctpo.objectives.advantages import v_trace

ERRORS: Final = (0.0, 0.25, 1.0)
TRACES: Final = (0.0, 0.95, 1.0)


@dataclass(frozen=True)
class CriticRow:
    """The estimate Σ_t ρ_t A_t ∇log π_t with the advantages of one critic.

    Attributes:
        error: the standard deviation of V − V^π at a prefix, in standard deviations of the reward under π.
        trace: λ.
        corrected: whether A is that of V-trace without bars; else it is that of GAE.
        bias: the distance of the expectation from ∇J(π), in units of ‖∇J(π)‖.
        cosine: between the two.
        variance: from one trajectory, in units of ‖∇J(π)‖².
    """

    error: float
    trace: float
    corrected: bool
    bias: float
    cosine: float
    variance: float


@dataclass(frozen=True)
class CriticProblem(Problem):
    """A problem whose advantages come from values, and the reward at the end.

    Attributes:
        values: V of every prefix; one tensor [V^t] per level.
        trace: λ.
        corrected: whether later steps are weighed by importance.
    """

    values: tuple[Tensor, ...] = ()
    trace: float = 1.0
    corrected: bool = False

    def trajectories(self, chunk: Chunk) -> Trajectories:
        """Return the trajectories of a chunk, with the critic's advantages."""
        plain = dataclasses.replace(_without_critic(self), advantage="terminal", baseline=0.0)
        o = plain.trajectories(chunk)  # its advantages are the rewards
        values = self.of_chunk(chunk).T
        rewards = torch.zeros_like(values)
        rewards[:, -1] = o.advantages[0]
        ratios = o.log_ratios.T if self.corrected else torch.zeros_like(values)
        mask = torch.ones_like(values, dtype=torch.bool)
        bars = {"rho_bar": torch.inf, "c_bar": torch.inf}
        advantages, _ = v_trace(rewards, values, mask, ratios, trace=self.trace, **bars)
        return dataclasses.replace(o, advantages=advantages.T)

    def of_chunk(self, chunk: Chunk) -> Tensor:
        """Return V before every action of a chunk's trajectories, [T, n]."""
        vocab = self.tree.vocab
        tables = [each.unsqueeze(-1).expand(-1, vocab) for each in self.values]
        return torch.stack([chunk.expand(t, table) for t, table in enumerate(tables)])


def critic_rows(
    problem: Problem, errors: Sequence[float] = ERRORS, traces: Sequence[float] = TRACES, *, seed: int = 0
) -> list[CriticRow]:
    """Return a row for every error and λ, with GAE and, where it differs, with V-trace.

    Args:
        problem: policies and reward; its kind of advantage does not matter.
        errors: of the critic.
        traces: λ.
        seed: of the normal errors, one per prefix.

    Example:
        len(critic_rows(Setup(horizon=3).problem(), errors=[0.5], traces=[0.0]))  # 1
    """
    norm, true = unit_of(problem), problem.gradient
    draw = torch.Generator().manual_seed(seed)
    exact = state_values(problem.target, problem.reward)
    noise = [torch.randn(each.shape, generator=draw, dtype=torch.float64) for each in exact]
    unit = _reward_std(problem)
    rows = []
    for error in errors:
        values = tuple(v + error * unit * n for v, n in zip(exact, noise, strict=True))
        for trace in traces:
            for corrected in (False, True) if trace else (False,):
                critic = CriticProblem(
                    **vars(_without_critic(problem)), values=values, trace=trace, corrected=corrected
                )
                found = moments(critic, {"": FAMILIES["cumulative"].coefficients})[""]
                lengths = (found.mean.norm() * true.norm()).item()
                cosine = (found.mean * true).sum().item() / lengths if lengths else 0.0
                bias = (found.mean - true).norm().item() / norm
                rows.append(CriticRow(error, trace, corrected, bias, cosine, found.variance / norm**2))
    return rows


def state_values(policy: Policy, reward: Tensor) -> list[Tensor]:
    """Return V(prefix), the expected reward if the policy draws the rest; one tensor [V^t] per level."""
    return [(p * q).sum(-1) for p, q in zip(policy.probs, action_values(policy, reward), strict=True)]


def _without_critic(problem: Problem) -> Problem:
    return Problem(**{each.name: getattr(problem, each.name) for each in dataclasses.fields(Problem)})


def _reward_std(problem: Problem) -> float:
    chance = (reach(problem.target)[-1].unsqueeze(-1) * problem.target.probs[-1]).reshape(-1)
    mean = (chance * problem.reward).sum()
    return float((chance * (problem.reward - mean).square()).sum().sqrt())
