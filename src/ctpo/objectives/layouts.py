"""How a tensor of tokens falls into sequences: sums along a sequence, for padded rows.

Shape legend: B rows, T positions, N tokens of a packed stream. Packed streams live in `segments`, sharded
ones in `sharding`; all answer the same protocol, so a ratio is written once.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype


class Layout(Protocol):
    """Sums along each sequence. Inputs and outputs have the shape of the tokens; masked tokens must hold the
    neutral element (0 for sums, +inf for minima)."""

    differentiable: bool
    """False when a sum crosses process boundaries, so that autograd cannot follow it."""

    def prefix_sum(self, values: Tensor) -> Tensor:
        """Inclusive sum over the sequence so far, accumulated in float64 where the device has it."""
        ...

    def suffix_sum(self, values: Tensor) -> Tensor:
        """Inclusive sum from each token to the end of its sequence."""
        ...

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sum over the whole sequence, repeated at (or broadcastable to) each of its tokens."""
        ...

    def prefix_min_before(self, values: Tensor) -> Tensor:
        """Minimum over the tokens strictly before each one, and +inf where there is none."""
        ...

    def count_sequences(self, mask: Tensor) -> Tensor:
        """Number of sequences with at least one token under the mask, 0-d (this process's share when
        sharded).
        """
        ...

    def expand(self, per_sequence_or_token: Tensor) -> Tensor:
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
        return values.to(prefix_dtype(values.device)).sum(-1, keepdim=True)

    def prefix_min_before(self, values: Tensor) -> Tensor:
        """See `Layout.prefix_min_before`."""
        if values.shape[-1] == 0:
            return values
        running = values.cummin(-1).values
        return torch.cat([torch.full_like(running[..., :1], torch.inf), running[..., :-1]], dim=-1)

    def count_sequences(self, mask: Tensor) -> Tensor:
        """See `Layout.count_sequences`."""
        return mask.any(-1).sum()

    def expand(self, per_sequence_or_token: Tensor) -> Tensor:
        """See `Layout.expand`; [B] becomes [B, 1]."""
        x = per_sequence_or_token
        return x.unsqueeze(-1) if x.ndim == 1 else x
