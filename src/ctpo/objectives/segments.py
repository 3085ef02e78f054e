"""Packed streams: sequences laid end to end in one 1-D tensor of N tokens, told apart by segment ids.

A prefix sum of a segment is the stream's prefix sum minus its value at the segment's start. In float32 that
subtraction loses up to 0.5 after a drifting segment, so it runs in float64; values are sanitised before, so
one segment's NaN cannot reach the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype


def segment_ids_from(cu_seqlens: Tensor, length: int) -> Tensor:
    """Segment of each token.

    Args:
        cu_seqlens: [S + 1] cumulative lengths, from 0 to N, as varlen attention takes them.
        length: N, tokens in the stream.

    Returns:
        [N] int64, non-decreasing from 0 to S − 1.

    Raises:
        ValueError: not 1-D, or (looked at on the CPU only) not running from 0 to N without falling.
    """
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens: shape {tuple(cu_seqlens.shape)}; expected [S + 1].")
    if cu_seqlens.device.type == "cpu":
        first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
        if first != 0 or last != length or bool((cu_seqlens.diff() < 0).any()):
            raise ValueError(
                f"cu_seqlens: runs from {first} to {last}; expected to rise from 0 to {length} (tokens)."
            )
    positions = torch.arange(length, device=cu_seqlens.device)
    # Counting the boundaries at or before a position also skips empty segments, and reads no value on the
    # host.
    return torch.searchsorted(cu_seqlens[1:].contiguous(), positions, right=True)


class Packed:
    """Segments of a 1-D stream are sequences; each segment's tokens are contiguous.

    Args:
        segment_ids: [N] integers, non-decreasing; numbers without tokens (empty segments) are fine.
    """

    differentiable = True

    def __init__(self, segment_ids: Tensor) -> None:
        self.ids = segment_ids.to(torch.int64)
        index = torch.arange(self.ids.shape[0], device=self.ids.device)
        starts = torch.ones_like(self.ids, dtype=torch.bool)
        starts[1:] = self.ids[1:] != self.ids[:-1]
        # Numbers of the segments that hold tokens: below N, so that buckets need no count from the device.
        self.dense = starts.cumsum(0) - 1
        # Position of the first token of each token's segment.
        self.start = torch.where(starts, index, torch.zeros_like(index))
        if len(index):
            self.start = self.start.cummax(0).values
        self.index = index

    def prefix_sum(self, values: Tensor) -> Tensor:
        """See `Layout.prefix_sum`."""
        wide = values.to(prefix_dtype(values.device))
        stream = wide.cumsum(0)
        return stream - (stream - wide)[self.start]

    def suffix_sum(self, values: Tensor) -> Tensor:
        """See `Layout.suffix_sum`."""
        wide = values.to(prefix_dtype(values.device))
        return self.sequence_sum(wide) - self.prefix_sum(wide) + wide

    def _totals(self, values: Tensor) -> Tensor:
        wide = values.to(prefix_dtype(values.device))
        return torch.zeros_like(wide).index_add(0, self.dense, wide)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """See `Layout.sequence_sum`; [N]."""
        return self._totals(values)[self.dense]

    def prefix_min_before(self, values: Tensor) -> Tensor:
        """See `Layout.prefix_min_before`; a segmented scan in log2 N doublings, exact in any dtype."""
        inf = torch.full_like(values, torch.inf)
        best = torch.where(self.index > self.start, values.roll(1), inf)
        step = 1
        while step < len(values):
            best = torch.where(self.index - step >= self.start, torch.minimum(best, best.roll(step)), best)
            step *= 2
        return best

    def count_sequences(self, mask: Tensor) -> Tensor:
        """See `Layout.count_sequences`."""
        return (self._totals(mask) > 0).sum()

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
        """See `Layout.expand`; [S] becomes [N]."""
        return values if values.shape == self.ids.shape else values[self.ids]
