"""How much a measurement samples, and how it is divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ctpo.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and of how much."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is sampled, and how it is divided.

    Attributes:
        problems: problems that both policies answer. As many others give the reference direction.
        batch: responses of one batch, which is one call of an objective.
        blocks: disjoint blocks of problems, over which errors are estimated.
        directions: random directions of the sketch.
        lengths: edges of the bins of response length, in sampled tokens; empty for thirds of the responses.
        seed: of problems, responses, directions and null advantages.
    """

    problems: int = 128
    batch: int = 64
    blocks: int = 8
    directions: int = 16
    lengths: tuple[int, ...] = ()
    seed: int = 0

    def check(self, group: int) -> None:
        """Check that problems, batches and blocks fit.

        Raises:
            UserError: if they do not.
        """
        for name in ("problems", "batch", "directions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is too small; use at least 1")
        if self.blocks < 3:
            raise UserError(f"blocks={self.blocks} is too small for an error; use at least 3")
        if self.batch % group:
            raise UserError(
                f"batch={self.batch} is no multiple of num_generations={group}; "
                f"use {max(1, self.batch // group) * group}"
            )
        unit = self.blocks * self.batch // group
        if self.problems % unit:
            raise UserError(
                f"problems={self.problems} do not fill {self.blocks} blocks of whole batches; use a multiple of {unit}"
            )
        if list(self.lengths) != sorted(set(self.lengths)) or (self.lengths and self.lengths[0] < 1):
            raise UserError(f"lengths={list(self.lengths)} are no rising edges; write for example 100,300")
