"""How the tokens of a call form sequences. A ratio is written once, against `Layout`, and is right on every layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


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
    def count_sequences(self, mask: Tensor) -> Tensor:
        """The number of sequences with at least one token under the mask; 0-d, over all processes."""

    @abstractmethod
    def expand(self, values: Tensor) -> Tensor:
        """One value per sequence as one per token; values per token pass through. Broadcastable to the tokens."""

    @abstractmethod
    def turns(self, turn_ids: Tensor, mask: Tensor) -> Layout:
        """The layout in which every turn of a sequence is a sequence of its own.

        Args:
            turn_ids: the turn of each token, integers from 0 that do not decrease along a sequence. Those outside the
                mask may be anything.
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
