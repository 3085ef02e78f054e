"""How a tensor of tokens falls into sequences: sums along a sequence, for padded rows.

Shape legend: B rows, T positions. Packed streams live in `segments`, sharded sequences in `sharding`; all
answer the same protocol, so a ratio is written once.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype


class Layout(Protocol):
    """Sums along each sequence. Masked tokens must hold the neutral element: 0 for sums, +inf for minima.

    Sums are accumulated in float64 where the device has it, and values must be finite (`tokens.sanitise`).
    """

    @property
    def differentiable(self) -> bool:
        """False when sums cross process boundaries, where autograd cannot follow."""
        ...

    def prefix_sum(self, values: Tensor) -> Tensor:
        """Inclusive sum over the sequence so far."""
        ...

    def suffix_sum(self, values: Tensor) -> Tensor:
        """Inclusive sum from each token to the end of its sequence."""
        ...

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sum over the whole sequence, broadcastable to its tokens."""
        ...

    def prefix_min_before(self, values: Tensor) -> Tensor:
        """Minimum over the tokens strictly before each one, +inf where there is none."""
        ...

    def count_sequences(self, mask: Tensor) -> Tensor:
        """Number of sequences with at least one token under the mask, over all shards; 0-d."""
        ...

    def sum_shards(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes that share these sequences."""
        ...

    def max_shards(self, values: Tensor) -> Tensor:
        """Maximum of a tensor over the processes that share these sequences."""
        ...

    def gather_shards(self, values: Tensor) -> Tensor:
        """1-D values of all the processes that share these sequences, in any order."""
        ...

    def position_bound(self, length: int) -> int:
        """A number no position t exceeds, given the local length of the last dimension."""
        ...

    def expand(self, values: Tensor) -> Tensor:
        """Per-sequence values repeated at their tokens; per-token values pass through."""
        ...


class Padded:
    """Rows of a [B, T] tensor are sequences."""

    differentiable = True

    def prefix_sum(self, values: Tensor) -> Tensor:
        """See `Layout.prefix_sum`."""
        return values.to(prefix_dtype(values.device)).cumsum(-1)

    def suffix_sum(self, values: Tensor) -> Tensor:
        """See `Layout.suffix_sum`."""
        return values.to(prefix_dtype(values.device)).flip(-1).cumsum(-1).flip(-1)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """See `Layout.sequence_sum`; [B, 1]."""
        if values.dtype == torch.bool:
            return values.sum(-1, keepdim=True).to(prefix_dtype(values.device))
        return values.to(prefix_dtype(values.device)).sum(-1, keepdim=True)

    def prefix_min_before(self, values: Tensor) -> Tensor:
        """See `Layout.prefix_min_before`."""
        running = values.cummin(-1).values
        return torch.cat([torch.full_like(running[..., :1], torch.inf), running[..., :-1]], dim=-1)

    def count_sequences(self, mask: Tensor) -> Tensor:
        """See `Layout.count_sequences`."""
        return mask.sum(-1).count_nonzero()  # on the CPU a fifth of the time of any()

    def sum_shards(self, values: Tensor) -> Tensor:
        """See `Layout.sum_shards`; nothing is shared."""
        return values

    def max_shards(self, values: Tensor) -> Tensor:
        """See `Layout.max_shards`; nothing is shared."""
        return values

    def gather_shards(self, values: Tensor) -> Tensor:
        """See `Layout.gather_shards`; nothing is shared."""
        return values

    def position_bound(self, length: int) -> int:
        """See `Layout.position_bound`."""
        return length

    def expand(self, values: Tensor) -> Tensor:
        """See `Layout.expand`; [B] becomes [B, 1]."""
        return values.unsqueeze(-1) if values.ndim == 1 else values
