"""Packed batches: segments laid end to end in one 1-D tensor of N tokens.

The prefix sum of a segment is the prefix sum of the whole tensor minus its value where the segment begins. In float32
that subtraction loses up to 0.5 after a segment that drifts, so it is done in float64. Values are sanitised before,
so a NaN in one segment cannot reach the next.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.layouts.layout import Layout, interpolated
from ctpo.objectives.layouts.recurrence import decayed_sum
from ctpo.objectives.numerics import prefix_dtype, reads_are_free


class Packed(Layout):
    """Segments of a [N] tensor. The tokens of a segment lie together. No method reads a value from the device.

    Args:
        segment_ids: [N] the number of each token's segment, not decreasing. A number without tokens is an empty
            segment.
    """

    def __init__(self, segment_ids: Tensor) -> None:
        self.ids = segment_ids.to(torch.int64)
        first = torch.cat([torch.ones_like(self.ids[:1], dtype=torch.bool), self.ids[1:] != self.ids[:-1]])
        self.index = torch.arange(self.ids.shape[0], device=self.ids.device)
        # Segments that hold tokens, numbered from 0: fewer than N, so buckets need no count from the device.
        self.bucket = first.cumsum(0) - 1
        self.start = torch.where(first, self.index, torch.zeros_like(self.index)).cummax(0).values

    def prefix_sum(self, values: Tensor) -> Tensor:
        wide = values.to(prefix_dtype(values.device))
        running = wide.cumsum(0)
        return running - (running - wide)[self.start]

    def decayed_sum(self, values: Tensor, steps: Tensor, decay: float) -> Tensor:
        """The sum over the whole tensor, less what the segments before have left of it."""
        wide = values.to(prefix_dtype(values.device))
        running, count = decayed_sum(wide, steps, decay), steps.to(wide.dtype).cumsum(0)
        before = torch.cat([torch.zeros_like(running[:1]), running[:-1]])[self.start]
        passed = count - (count - steps.to(wide.dtype))[self.start]
        return running - before * (passed * math.log(decay)).exp()

    def suffix_sum(self, values: Tensor) -> Tensor:
        wide = values.to(prefix_dtype(values.device))
        return self.sequence_sum(wide) - self.prefix_sum(wide) + wide

    def sequence_sum(self, values: Tensor) -> Tensor:
        """[N]."""
        return self._totals(values)[self.bucket]

    def sequence_max(self, values: Tensor) -> Tensor:
        """[N]."""
        lowest = torch.full_like(values, -torch.inf)
        return lowest.scatter_reduce(0, self.bucket, values, "amax")[self.bucket]

    def prefix_min_before(self, values: Tensor) -> Tensor:
        """By log2 N doublings, exact in any dtype."""
        inf = torch.full_like(values, torch.inf)
        best = torch.where(self.index > self.start, values.roll(1), inf)
        step = 1
        while step < values.shape[0]:
            best = torch.where(self.index - step >= self.start, torch.minimum(best, best.roll(step)), best)
            step *= 2
        return best

    def sequence_quantile(self, values: Tensor, mask: Tensor, q: float) -> Tensor:
        """[N]."""
        wide = torch.where(mask, values, torch.inf).to(prefix_dtype(values.device))
        # Sorted by value, and then by segment without changing the order inside of one.
        by_value = wide.argsort()
        order = by_value[self.bucket[by_value].argsort(stable=True)]
        return interpolated(wide[order], self.start, self.sequence_sum(mask).long(), q)

    def count_sequences(self, mask: Tensor) -> Tensor:
        return self._totals(mask).count_nonzero()

    def expand(self, values: Tensor) -> Tensor:
        """[S] becomes [N]. [N] is taken as one value per token, also if S = N."""
        return values if values.shape == self.ids.shape else values[self.ids]

    def turns(self, turn_ids: Tensor, mask: Tensor) -> Layout:
        return Packed(turn_keys(self.bucket, turn_ids, mask))

    def _totals(self, values: Tensor) -> Tensor:
        """[N] the sum of each segment that holds tokens, then zeros."""
        wide = values.to(prefix_dtype(values.device))
        return torch.zeros_like(wide).index_add(0, self.bucket, wide)


def turn_keys(sequences: Tensor, turn_ids: Tensor, mask: Tensor) -> Tensor:
    """[N] the number of each token's turn, counted over all sequences.

    A token outside the mask belongs to the turn before it, whatever its id.

    Args:
        sequences: [N] the number of each token's sequence; it changes where a sequence ends.
        turn_ids: [N] integers.
        mask: [N] true on tokens that the model sampled.
    """
    index = torch.arange(mask.shape[0], device=mask.device)
    last = torch.where(mask, index, torch.zeros_like(index)).cummax(0).values
    carried = turn_ids.to(torch.int64)[last]
    ends = (carried[1:] != carried[:-1]) | (sequences[1:] != sequences[:-1])
    return torch.cat([torch.zeros_like(index[:1]), ends.cumsum(0)])


def packed_from(cu_seqlens: Tensor, length: int, segments: int | None) -> Packed:
    """The layout of segments with the given cumulative lengths.

    Args:
        cu_seqlens: [S + 1] cumulative lengths from 0 to N, as attention kernels for variable lengths take them.
        length: N, the number of tokens.
        segments: the number of values per sequence that must cover the segments; None if there are none.

    Raises:
        ValueError: not 1-D. Where reading values is free, also: not rising from 0 to N, or tokens in segments that
            have no value.
    """
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens: shape {tuple(cu_seqlens.shape)}; expected [S + 1].")
    if reads_are_free(cu_seqlens):
        first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
        if first != 0 or last != length or bool((cu_seqlens.diff() < 0).any()):
            raise ValueError(
                f"cu_seqlens: runs from {first} to {last}; expected to rise from 0 to {length} (tokens)."
            )
        filled = cu_seqlens.diff().nonzero()
        if segments is not None and filled.numel():
            checks.segment_numbers(0, int(filled[-1]), segments)
    positions = torch.arange(length, device=cu_seqlens.device)
    # The number of segments that end at or before a position is the number of its segment, empty ones included.
    return Packed(torch.searchsorted(cu_seqlens[1:].contiguous(), positions, right=True))
