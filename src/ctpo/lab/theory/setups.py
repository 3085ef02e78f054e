"""Problems to enumerate: drawn at random, chosen to be hard, or made from the tables of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from ctpo.errors import UserError
from ctpo.lab.theory.adversary import worst_direction
from ctpo.lab.theory.policies import Policy, Sharing, random_logits
from ctpo.lab.theory.problems import Problem, draw_reward
from ctpo.lab.theory.tables import PolicyTables
from ctpo.lab.theory.trees import Tree
from ctpo.objectives.numerics import SATURATION

POLICIES: Final = {
    "random": "π's logits are b's plus distance times standard normal numbers",
    "adversarial": "π's logits are b's ± distance, with the signs that make the bias of a family large",
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings that make a problem.

    Attributes:
        vocab: V, the number of actions.
        horizon: T, the number of steps.
        sharing: one of SHARINGS.
        policy: one of POLICIES.
        distance: the scale of the difference between the logits of π and b, 0 to 20. The library treats larger log
            ratios as broken.
        spread: the standard deviation of b's logits, 0 to 20; 0 gives the uniform policy.
        reward: one of REWARDS.
        advantage: one of ADVANTAGES.
        baseline: of the terminal advantage; None takes E_b[R].
        against: the family whose bias the "adversarial" policy makes large.
        seed: of all random draws.

    Raises:
        UserError: if the policy is unknown, or a number is out of range.

    Example:
        Setup(vocab=2, horizon=3, distance=0.5).problem().reward.shape  # (8,)
    """

    vocab: int = 2
    horizon: int = 8
    sharing: str = "tabular"
    policy: str = "random"
    distance: float = 0.3
    spread: float = 1.0
    reward: str = "random"
    advantage: str = "terminal"
    baseline: float | None = None
    against: str = "cumulative"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(f"policy={self.policy!r} is unknown; use one of {', '.join(POLICIES)}, or a file")
        for name in ("distance", "spread"):
            value = getattr(self, name)
            if not 0 <= value <= SATURATION:
                raise UserError(f"{name}={value} is out of range; use 0 or more, up to {SATURATION:g}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed} is out of range; use 0 or more")

    def problem(self) -> Problem:
        """Return the problem. The behaviour is drawn first, then the direction of the target, then the reward."""
        sharing = Sharing(self.sharing, Tree(self.vocab, self.horizon))
        generator = torch.Generator().manual_seed(self.seed)
        old = random_logits(sharing, self.spread, generator)
        direction = random_logits(sharing, 1.0, generator)
        reward = draw_reward(self.reward, sharing.tree, generator)
        problem = Problem(
            behaviour=Policy(old, sharing),
            target=Policy(old + self.distance * direction, sharing),
            reward=reward,
            advantage=self.advantage,
            baseline=self.baseline,
        )
        if self.policy == "adversarial":
            return worst_direction(problem, self.distance, direction.sign(), self.against)
        return problem

    def problem_of(self, tables: PolicyTables) -> Problem:
        """Return the problem of a file's policies. If the file has no reward, this setup's is drawn."""
        sharing = Sharing(self.sharing, Tree(tables.vocab, tables.horizon or self.horizon))
        generator = torch.Generator().manual_seed(self.seed)
        reward = tables.reward
        return Problem(
            behaviour=Policy(tables.behaviour, sharing),
            target=Policy(tables.target, sharing),
            reward=draw_reward(self.reward, sharing.tree, generator) if reward is None else reward,
            advantage=self.advantage,
            baseline=self.baseline,
        )
