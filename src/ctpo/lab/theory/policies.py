"""Autoregressive policies as tables of logits, with or without shared parameters.

θ is a table [G, V] of logits; every prefix uses the row of its group. `tabular` has one row a prefix, the others tie
rows, as a network does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.lab.theory.trees import Tree

SHARINGS: Final = {
    "tabular": "a row of logits for every prefix",
    "position": "a row for every position",
    "bigram": "a row for the start and one for each last action",
    "stationary": "one row for all prefixes",
}


@dataclass(frozen=True)
class Sharing:
    """Which prefixes share a row of logits."""

    name: str
    tree: Tree

    def __post_init__(self) -> None:
        if self.name not in SHARINGS:
            raise UserError(f"sharing={self.name!r} is unknown; use one of {', '.join(SHARINGS)}")

    @property
    def rows(self) -> int:
        """G, the rows of logits."""
        sizes = {"tabular": self.tree.nodes, "position": self.tree.horizon, "bigram": self.tree.vocab + 1}
        return sizes.get(self.name, 1)

    @property
    def crosses_positions(self) -> bool:
        """Whether two positions of one trajectory can use the same row, so that their gradients interfere."""
        return self.name in ("bigram", "stationary")

    def groups(self, level: int) -> Tensor:
        """Row of every prefix of a level, [V^t]."""
        return self.row_of(level, torch.arange(self.tree.vocab**level))

    def row_of(self, level: int, prefixes: Tensor) -> Tensor:
        """Rows of prefixes of a level, given by their numbers."""
        if self.name == "tabular":
            earlier: int = sum(self.tree.vocab**t for t in range(level))
            return prefixes + earlier
        if self.name == "position":
            return torch.full_like(prefixes, level)
        if self.name == "bigram" and level:
            return prefixes % self.tree.vocab + 1
        return torch.zeros_like(prefixes)


@dataclass(frozen=True)
class Policy:
    """π(a|prefix) = softmax(θ[group(prefix)])_a.

    Attributes:
        logits: θ, [G, V] float64; may require a gradient.
        sharing: the groups.
    """

    logits: Tensor
    sharing: Sharing

    def __post_init__(self) -> None:
        expected = (self.sharing.rows, self.sharing.tree.vocab)
        if tuple(self.logits.shape) != expected:
            raise UserError(
                f"logits of shape {tuple(self.logits.shape)} do not fit sharing={self.sharing.name!r}, which has "
                f"{expected[0]} rows of {expected[1]}"
            )
        if not bool(self.logits.detach().isfinite().all()):
            raise UserError(
                "logits hold a value that is not finite; use a large negative number instead of -inf"
            )

    @cached_property
    def log_probs(self) -> list[Tensor]:
        """log π(a|prefix) at every level, [V^t, V]."""
        table = self.logits.log_softmax(-1)
        return [table[self.sharing.groups(t)] for t in range(self.sharing.tree.horizon)]

    @cached_property
    def probs(self) -> list[Tensor]:
        """π(a|prefix) at every level, [V^t, V]."""
        return [level.exp() for level in self.log_probs]

    def gradient(self, edge_weights: list[Tensor]) -> Tensor:
        """Σ over edges of weight · ∇_θ log π(a|prefix), [G, V].

        The gradient of log softmax is onehot(a) − π, so a row collects its weights minus their sum times π.
        """
        total = torch.zeros_like(self.logits)
        for level in range(len(edge_weights)):
            total = total + self.level_gradient(level, edge_weights[level])
        return total

    def level_gradient(self, level: int, edge_weights: Tensor) -> Tensor:
        """The part of `gradient` that comes from one level's edges, weights [V^t, V]."""
        weights = edge_weights.reshape(self.probs[level].shape)
        prefix_gradient = weights - weights.sum(-1, keepdim=True) * self.probs[level]
        zeros = torch.zeros_like(self.logits)
        return zeros.index_add(0, self.sharing.groups(level), prefix_gradient)

    @cached_property
    def score_squares(self) -> list[Tensor]:
        """‖∇_θ log π(a|prefix)‖² = 1 − 2π(a) + Σ_a' π(a')² at every level, [V^t, V]."""
        return [1 - 2 * probs + probs.square().sum(-1, keepdim=True) for probs in self.probs]


def random_logits(sharing: Sharing, spread: float, generator: torch.Generator) -> Tensor:
    """Independent normal logits of standard deviation `spread`, [G, V]."""
    shape = (sharing.rows, sharing.tree.vocab)
    return spread * torch.randn(shape, dtype=torch.float64, generator=generator)
