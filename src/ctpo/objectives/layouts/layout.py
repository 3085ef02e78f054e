"""How the tokens of a call form sequences. A ratio is written once, against `Layout`, and is right on every layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype


class Layout(ABC):
    """Sums along each sequence of a call.

    Tokens that do not count must hold the neutral element: 0 for sums, +inf for minima, −inf for maxima. Values must be
    finite otherwise, which `tokens.sanitise` sees to. Sums are accumulated in float64 where the device has it.

    A layout whose sequences are shared by several processes overrides the four methods at the end.
    """

    differentiable: ClassVar[bool] = True
    """False if sums cross process boundaries, where autograd cannot follow."""

    @abstractmethod
    def prefix_sum(self, values: Tensor) -> Tensor:
        """The sum over the sequence up to and including each token; the shape of `values`."""

    @abstractmethod
    def decayed_sum(self, values: Tensor, steps: Tensor, decay: float) -> Tensor:
        """x_t = decay · x_{t−1} + v_t over the sequence's tokens under `steps`; elsewhere x_t = x_{t−1} + v_t.

        Args:
            values: v, one per token.
            steps: booleans of the same shape, true where the sum forgets.
            decay: above 0 and below 1.

        Returns:
            The shape of `values`.
        """

    @abstractmethod
    def suffix_sum(self, values: Tensor) -> Tensor:
        """The sum from each token to the end of its sequence; the shape of `values`."""

    @abstractmethod
    def sequence_sum(self, values: Tensor) -> Tensor:
        """The sum over the whole sequence, broadcastable to its tokens."""

    @abstractmethod
    def sequence_max(self, values: Tensor) -> Tensor:
        """The maximum over the whole sequence, broadcastable to its tokens; −inf where nothing counts."""

    @abstractmethod
    def prefix_min_before(self, values: Tensor) -> Tensor:
        """The minimum over the tokens strictly before each one, +inf where there are none."""

    @abstractmethod
    def sequence_quantile(self, values: Tensor, mask: Tensor, q: float) -> Tensor:
        """The q quantile of each sequence's values under the mask; broadcastable to the tokens, 0 where there are none.

        It lies between two values where q does not meet one (linear interpolation).
        """

    @abstractmethod
    def count_sequences(self, mask: Tensor) -> Tensor:
        """The number of sequences with at least one token under the mask; 0-d, over all processes."""

    @abstractmethod
    def expand(self, values: Tensor) -> Tensor:
        """One value per sequence as one per token; values per token pass through. Broadcastable to the tokens."""

    @abstractmethod
    def turns(self, turn_ids: Tensor, mask: Tensor) -> Layout:
        """The layout in which every turn of a sequence is a sequence of its own.

        A turn ends where the number of a token under the mask differs from that of the token under the mask before it.

        Args:
            turn_ids: the turn of each token, integers. Those outside the mask may be anything.
            mask: true on tokens that the model sampled.
        """

    def sum_shards(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes that share the sequences."""
        return values

    def max_shards(self, values: Tensor) -> Tensor:
        """The maximum of a tensor over the processes that share the sequences."""
        return values

    def gather_shards(self, values: Tensor) -> Tensor:
        """The 1-D values of all the processes that share the sequences, in any order."""
        return values

    def position_bound(self, length: int) -> int:
        """A number that no position t exceeds, given the local size of the last dimension."""
        return length


def interpolated(ordered: Tensor, start: Tensor, count: Tensor, q: float) -> Tensor:
    """The q quantile of the `count` values that begin at `start` in a row of ordered values; 0 if there are none.

    Args:
        ordered: [..., n] values. What follows the `count` values may be anything.
        start, count: integers that index the last dimension.
        q: in [0, 1].
    """
    # A zero at the end stands for the values of a sequence without any.
    ordered = torch.cat([ordered, torch.zeros_like(ordered[..., :1].sum(-1, keepdim=True))], dim=-1)
    last = ordered.shape[-1] - 1
    rank = q * (count - 1).clamp(min=0).to(prefix_dtype(ordered.device))
    low = rank.floor().long()
    high = torch.minimum(low + 1, (count - 1).clamp(min=0))
    none = count < 1

    def value(index: Tensor) -> Tensor:
        return ordered.gather(-1, torch.where(none, last, start + index))

    return value(low) + (value(high) - value(low)) * (rank - low)
