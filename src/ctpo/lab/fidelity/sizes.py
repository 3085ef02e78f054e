"""How much a measurement samples, and how it is divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ctpo.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and of how much."""
_SMALL: Final = 1_000_000
"""Up to how many parameters gradients are exact by default."""
_DIRECTIONS: Final = 16
"""Of larger models by default."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is sampled, and how it is divided.

    Attributes:
        problems: problems that both policies answer. As many others give the reference direction.
        batch: responses of one batch, which is one call of an objective.
        blocks: disjoint blocks of problems, over which errors are estimated.
        directions: random directions of the sketch; 0 for exact gradients; None for 0 if the model is small, else 16.
        lengths: edges of the bins of response length, in sampled tokens; empty for thirds of the responses.
        seed: of problems, responses, directions and null advantages.
    """

    problems: int = 128
    batch: int = 64
    blocks: int = 8
    directions: int | None = None
    lengths: tuple[int, ...] = ()
    seed: int = 0

    def directions_for(self, parameters: int) -> int:
        """The number of directions for a model of so many parameters."""
        if self.directions is not None:
            return self.directions
        return 0 if parameters <= _SMALL else _DIRECTIONS

    def check(self, group: int) -> None:
        """Check that problems, batches and blocks fit.

        Raises:
            UserError: if they do not.
        """
        for name, least in (("problems", 1), ("batch", 1), ("directions", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value} is too small; use at least {least}")
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
