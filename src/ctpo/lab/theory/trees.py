"""The tree of all responses of one length: how prefixes, actions and trajectories are numbered.

V actions, T steps. A prefix of t actions is the base-V number they spell, 0..V^t − 1; a trajectory is a prefix of
T actions. An edge at level t (0-based) is a prefix of t actions and the next action, numbered prefix·V + action,
which is the number of the longer prefix. So the trajectories through an edge are contiguous, and sums over them are
reshapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from ctpo.errors import UserError

MOST_TRAJECTORIES: Final = 2**20
"""Enumeration is linear in V^T; beyond a million it stops being a matter of seconds."""

_CHUNK: Final = 2**16
"""Trajectories held at once: some 80 MB for eight estimators of 20 steps in float64."""


@dataclass(frozen=True)
class Tree:
    """All trajectories of `horizon` actions out of `vocab`.

    Raises:
        UserError: a vocabulary below 2, a horizon below 1, or more than 2^20 trajectories.
    """

    vocab: int
    horizon: int

    def __post_init__(self) -> None:
        if self.vocab < 2:
            raise UserError(f"vocab={self.vocab} leaves no choice; use 2 or more")
        if self.vocab > MOST_TRAJECTORIES:
            raise UserError(f"vocab={self.vocab} is too many actions; use at most {MOST_TRAJECTORIES:,}")
        if self.horizon < 1:
            raise UserError(f"horizon={self.horizon} is too short; use 1 or more")
        # The first test spares the power of a silly horizon, which would itself take minutes.
        if self.horizon > 20 or self.vocab**self.horizon > MOST_TRAJECTORIES:
            raise UserError(
                f"vocab={self.vocab}, horizon={self.horizon} has {self.vocab}^{self.horizon} trajectories, more than "
                f"{MOST_TRAJECTORIES:,}; use horizon={longest_horizon(self.vocab)} or less"
            )

    @property
    def trajectories(self) -> int:
        """V^T."""
        count: int = self.vocab**self.horizon
        return count

    @property
    def nodes(self) -> int:
        """Prefixes shorter than T: Σ_{t<T} V^t."""
        return sum(self.vocab**t for t in range(self.horizon))

    def chunks(self, size: int = _CHUNK) -> Iterator[Chunk]:
        """The trajectories in contiguous pieces of the largest power of V not above `size` (at least V)."""
        length = self.vocab
        while length * self.vocab <= min(size, self.trajectories):
            length *= self.vocab
        for start in range(0, self.trajectories, length):
            yield Chunk(self, start, length)

    def whole(self) -> Chunk:
        """All trajectories at once."""
        return Chunk(self, 0, self.trajectories)


@dataclass(frozen=True)
class Chunk:
    """Trajectories start..start + length − 1; length is a power of V that divides start."""

    tree: Tree
    start: int
    length: int

    def edges(self, level: int) -> slice:
        """The edges of a level that these trajectories go through."""
        under = self.tree.vocab ** (self.tree.horizon - 1 - level)
        return slice(self.start // under, max((self.start + self.length) // under, self.start // under + 1))

    def spread(self, level: int, table: Tensor) -> Tensor:
        """Values of a level's edges [V^t, V] at each of these trajectories, [length]."""
        own = table.reshape(-1)[self.edges(level)]
        return own.unsqueeze(1).expand(-1, self.length // len(own)).reshape(-1)

    def gather(self, level: int, values: Tensor) -> Tensor:
        """Sums of values [length] over the trajectories of each edge in `edges(level)`; transpose of `spread`."""
        edges = self.edges(level)
        return values.reshape(edges.stop - edges.start, -1).sum(-1)


def longest_horizon(vocab: int) -> int:
    """Largest T with V^T within the limit, at least 1."""
    horizon = 1
    while vocab ** (horizon + 1) <= MOST_TRAJECTORIES:
        horizon += 1
    return horizon
