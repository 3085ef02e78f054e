"""The problem that is enumerated: a behaviour policy b, a target policy π, rewards, and a kind of advantage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.lab.theory.policies import Policy
from ctpo.lab.theory.trees import Chunk, Tree
from ctpo.lab.theory.values import action_values, advantages, expected_reward, policy_gradient

ADVANTAGES: Final = {
    "terminal": "A(o) = R(o) − baseline, the same at every token",
    "behaviour": "A^b(s_t, a_t) of the behaviour policy",
    "target": "A^π(s_t, a_t) of the target policy",
}
REWARDS: Final = {
    "random": "independent standard normal rewards",
    "binary": "0 or 1 with equal chances",
    "first": "1 where the first action is 0",
    "last": "1 where the last action is 0",
    "count": "the share of actions that are 0",
}


@dataclass(frozen=True)
class Problem:
    """The problem of estimating ∇J(π) from trajectories of b.

    Attributes:
        behaviour: b, which draws the trajectories.
        target: π, whose gradient is wanted.
        reward: R of every trajectory, [V^T].
        advantage: one of ADVANTAGES.
        baseline: what "terminal" subtracts from R; None takes E_b[R].

    Raises:
        UserError: if the parts do not fit each other, or a value is not finite.
    """

    behaviour: Policy
    target: Policy
    reward: Tensor
    advantage: str = "terminal"
    baseline: float | None = None

    def __post_init__(self) -> None:
        if self.behaviour.sharing.tree != self.tree:
            raise UserError("behaviour and target differ in vocabulary or horizon; use the same for both")
        if self.reward.shape != (self.tree.trajectories,):
            raise UserError(
                f"reward has {self.reward.numel()} values; give {self.tree.trajectories}, one per trajectory"
            )
        if not bool(self.reward.isfinite().all()):
            raise UserError("reward holds a value that is not finite; use finite numbers")
        if self.advantage not in ADVANTAGES:
            raise UserError(f"advantage={self.advantage!r} is unknown; use one of {', '.join(ADVANTAGES)}")
        if self.baseline is not None and not math.isfinite(self.baseline):
            raise UserError(
                f"baseline={self.baseline} is not finite; use a number, or none for the mean reward"
            )

    @property
    def tree(self) -> Tree:
        """The tree of both policies."""
        return self.target.sharing.tree

    @cached_property
    def gradient(self) -> Tensor:
        """∇J(π), [G, V]."""
        return policy_gradient(self.target, self.target, self.target, action_values(self.target, self.reward))

    @cached_property
    def centre(self) -> Tensor:
        """The baseline of the terminal advantage, a scalar."""
        if self.baseline is None:
            return expected_reward(self.behaviour, self.reward)
        return torch.tensor(self.baseline, dtype=torch.float64)

    def edge_advantages(self, continuation: Policy) -> list[Tensor]:
        """Return E[A | prefix, action] if `continuation` draws the rest; one tensor [V^t, V] per level."""
        if self.advantage == "terminal":
            return [q - self.centre for q in action_values(continuation, self.reward)]
        return self._own_advantages

    @cached_property
    def _own_advantages(self) -> list[Tensor]:
        return advantages(self.behaviour if self.advantage == "behaviour" else self.target, self.reward)

    def trajectories(self, chunk: Chunk) -> Trajectories:
        """Return the trajectories of a chunk, with everything that an estimator may use."""
        levels = range(self.tree.horizon)
        old = torch.stack([chunk.expand(t, self.behaviour.log_probs[t]) for t in levels])
        if self.advantage == "terminal":
            own = self.reward[chunk.start : chunk.start + chunk.length] - self.centre
            signal = own.expand_as(old)
        else:
            signal = torch.stack([chunk.expand(t, self._own_advantages[t]) for t in levels])
        return Trajectories(
            logps=torch.stack([chunk.expand(t, self.target.log_probs[t]) for t in levels]),
            old_logps=old,
            advantages=signal,
            probability=old.sum(0).exp(),
        )


@dataclass(frozen=True)
class Trajectories:
    """n trajectories drawn by b. The first dimension is time.

    Attributes:
        logps: log π of every action, [T, n].
        old_logps: log b of every action, [T, n].
        advantages: A of every action, [T, n].
        probability: the probability of each trajectory under b, [n].
    """

    logps: Tensor
    old_logps: Tensor
    advantages: Tensor
    probability: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """d_t = log π − log b of every action, [T, n]."""
        return self.logps - self.old_logps


def draw_reward(name: str, tree: Tree, generator: torch.Generator) -> Tensor:
    """Return the reward of every trajectory, [V^T] float64.

    Raises:
        UserError: if the name is none of REWARDS.
    """
    index = torch.arange(tree.trajectories)
    if name == "random":
        return torch.randn(tree.trajectories, dtype=torch.float64, generator=generator)
    if name == "binary":
        return torch.randint(2, (tree.trajectories,), generator=generator).double()
    places: list[int] = [tree.vocab**k for k in range(tree.horizon)]
    actions = [index // place % tree.vocab == 0 for place in places]  # the last action first
    if name == "first":
        return actions[-1].double()
    if name == "last":
        return actions[0].double()
    if name == "count":
        return torch.stack(actions).double().mean(0)
    raise UserError(f"reward={name!r} is unknown; use one of {', '.join(REWARDS)}, or a file's")
