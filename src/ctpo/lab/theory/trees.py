"""The tree of all responses of one length, and how its prefixes, edges and trajectories are numbered.

There are V actions and T steps. The number of a prefix of t actions is the base-V number that they spell, from 0 to
V^t − 1. A trajectory is a prefix of T actions. An edge at level t, counted from 0, is a prefix of t actions and the
action after it. Its number is prefix·V + action, which is also the number of the longer prefix. So the trajectories
through one edge have consecutive numbers, and a sum over them is a reshape and a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from ctpo.errors import UserError

MOST_TRAJECTORIES: Final = 2**20
"""The time of an enumeration is linear in V^T. Beyond a million trajectories it takes more than seconds."""

_CHUNK: Final = 2**16
"""Trajectories in memory at once. Eight estimators of 20 steps then take some 80 MB in float64."""


@dataclass(frozen=True)
class Tree:
    """All trajectories of `horizon` actions, each one of `vocab`.

    Raises:
        UserError: if the vocabulary is below 2, the horizon is below 1, or there are more than 2^20 trajectories.

    Example:
        Tree(vocab=2, horizon=4).horizon  # 4
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
        # The first test avoids computing the power of a huge horizon, which would take minutes.
        if self.horizon > 20 or self.vocab**self.horizon > MOST_TRAJECTORIES:
            raise UserError(
                f"vocab={self.vocab}, horizon={self.horizon} has {self.vocab}^{self.horizon} trajectories, more than "
                f"{MOST_TRAJECTORIES:,}; use horizon={longest_horizon(self.vocab)} or less"
            )

    @property
    def trajectories(self) -> int:
        """V^T, the number of trajectories."""
        count: int = self.vocab**self.horizon
        return count

    @property
    def nodes(self) -> int:
        """The number of prefixes shorter than T: Σ_{t<T} V^t."""
        return sum(self.vocab**t for t in range(self.horizon))

    def chunks(self, size: int = _CHUNK) -> Iterator[Chunk]:
        """Yield all trajectories in chunks of one length, the largest power of V up to `size`, but at least V."""
        length = self.vocab
        while length * self.vocab <= min(size, self.trajectories):
            length *= self.vocab
        for start in range(0, self.trajectories, length):
            yield Chunk(self, start, length)

    def whole(self) -> Chunk:
        """Return one chunk of all trajectories."""
        return Chunk(self, 0, self.trajectories)


@dataclass(frozen=True)
class Chunk:
    """The trajectories numbered start to start + length − 1. The length is a power of V and divides the start."""

    tree: Tree
    start: int
    length: int

    def edges(self, level: int) -> slice:
        """Return the numbers of the edges of a level that these trajectories go through."""
        under = self.tree.vocab ** (self.tree.horizon - 1 - level)
        return slice(self.start // under, max((self.start + self.length) // under, self.start // under + 1))

    def expand(self, level: int, table: Tensor) -> Tensor:
        """Return the value of each trajectory's edge at a level, [length], from the values of all edges, [V^t, V]."""
        own = table.reshape(-1)[self.edges(level)]
        return own.unsqueeze(1).expand(-1, self.length // len(own)).reshape(-1)

    def sum_by_edge(self, level: int, values: Tensor) -> Tensor:
        """Return the sum of the trajectories' values, [length], over each edge in `edges(level)`.

        As a linear map this is the transpose of `expand`.
        """
        edges = self.edges(level)
        return values.reshape(edges.stop - edges.start, -1).sum(-1)


def longest_horizon(vocab: int) -> int:
    """Return the largest T for which V^T is within the limit; at least 1."""
    horizon = 1
    while vocab ** (horizon + 1) <= MOST_TRAJECTORIES:
        horizon += 1
    return horizon
