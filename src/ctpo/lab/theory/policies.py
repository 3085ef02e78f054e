"""Autoregressive policies as tables of logits, with or without shared parameters.

The parameters θ are a table of logits, [G, V]. Every prefix uses one row of it. With the sharing `tabular` every prefix
has a row of its own. With the others several prefixes share a row, as the prefixes of a network share its weights.
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
    "tabular": "one row of logits per prefix",
    "position": "one row per position",
    "bigram": "one row for the start, and one per last action",
    "stationary": "a single row for all prefixes",
}


@dataclass(frozen=True)
class Sharing:
    """Which prefixes share a row of logits.

    Attributes:
        name: one of SHARINGS.
        tree: of the prefixes.
    """

    name: str
    tree: Tree

    def __post_init__(self) -> None:
        if self.name not in SHARINGS:
            raise UserError(f"sharing={self.name!r} is unknown; use one of {', '.join(SHARINGS)}")

    @property
    def rows(self) -> int:
        """G, the number of rows of logits."""
        sizes = {"tabular": self.tree.nodes, "position": self.tree.horizon, "bigram": self.tree.vocab + 1}
        return sizes.get(self.name, 1)

    @property
    def crosses_positions(self) -> bool:
        """Whether two positions of one trajectory can use the same row, so that their gradients overlap."""
        return self.name in ("bigram", "stationary")

    def rows_of_level(self, level: int) -> Tensor:
        """Return the row of every prefix of a level, [V^t]."""
        return self.row_of(level, torch.arange(self.tree.vocab**level))

    def row_of(self, level: int, prefixes: Tensor) -> Tensor:
        """Return the rows of some prefixes of a level, given by their numbers."""
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
    """The policy π(a|prefix) = softmax(θ[row of the prefix])_a.

    Attributes:
        logits: θ, [G, V] float64; it may require a gradient.
        sharing: which row each prefix uses.

    Raises:
        UserError: if the logits do not have the shape that the sharing needs, or are not finite.
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
        """log π(a|prefix), one tensor [V^t, V] per level."""
        table = self.logits.log_softmax(-1)
        return [table[self.sharing.rows_of_level(t)] for t in range(self.sharing.tree.horizon)]

    @cached_property
    def probs(self) -> list[Tensor]:
        """π(a|prefix), one tensor [V^t, V] per level."""
        return [level.exp() for level in self.log_probs]

    def gradient(self, edge_weights: list[Tensor]) -> Tensor:
        """Return Σ over edges of weight · ∇_θ log π(a|prefix), [G, V].

        The gradient of log softmax is onehot(a) − π. So a prefix adds its weights minus π times their sum to its row.

        Args:
            edge_weights: one tensor [V^t, V] per level.
        """
        total = torch.zeros_like(self.logits)
        for level in range(len(edge_weights)):
            total = total + self.level_gradient(level, edge_weights[level])
        return total

    def level_gradient(self, level: int, edge_weights: Tensor) -> Tensor:
        """Return the part of `gradient` that comes from the edges of one level, with weights [V^t, V]."""
        weights = edge_weights.reshape(self.probs[level].shape)
        prefix_gradient = weights - weights.sum(-1, keepdim=True) * self.probs[level]
        zeros = torch.zeros_like(self.logits)
        return zeros.index_add(0, self.sharing.rows_of_level(level), prefix_gradient)

    @cached_property
    def score_squares(self) -> list[Tensor]:
        """‖∇_θ log π(a|prefix)‖² = 1 − 2π(a) + Σ_a' π(a')², one tensor [V^t, V] per level."""
        return [1 - 2 * probs + probs.square().sum(-1, keepdim=True) for probs in self.probs]


def random_logits(sharing: Sharing, spread: float, generator: torch.Generator) -> Tensor:
    """Return independent normal logits with standard deviation `spread`, [G, V] float64."""
    shape = (sharing.rows, sharing.tree.vocab)
    return spread * torch.randn(shape, dtype=torch.float64, generator=generator)
