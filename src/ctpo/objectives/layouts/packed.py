"""Packed streams: sequences laid end to end in one 1-D tensor of N tokens, told apart by segment ids.

A prefix sum of a segment is the stream's prefix sum minus its value at the segment's start. In float32 that
subtraction loses up to 0.5 after a drifting segment, so it runs in float64; values are sanitised before, so
one segment's NaN cannot reach the next.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.numerics import prefix_dtype


class Packed:
    """Segments of a 1-D stream are sequences; each segment's tokens are contiguous.

    Args:
        segment_ids: [N] integers, non-decreasing; numbers without tokens (empty segments) are fine.
        cu_seqlens: [S + 1] cumulative lengths on the CPU, instead; already checked.
    """

    differentiable = True

    def __init__(self, segment_ids: Tensor | None = None, cu_seqlens: Tensor | None = None) -> None:
        assert (segment_ids is None) != (cu_seqlens is None)
        self._ids, self._cu = segment_ids, cu_seqlens
        self.length = int(cu_seqlens[-1]) if cu_seqlens is not None else len(segment_ids)  # type: ignore[arg-type]

    @cached_property
    def ids(self) -> Tensor:
        """[N] segment of each token."""
        if self._ids is not None:
            return self._ids.to(torch.int64)
        return self.numbers.repeat_interleave(self.lengths, output_size=self.length)

    @cached_property
    def starts(self) -> Tensor:
        """[G] positions of the first tokens of the segments that hold any (reads values: on the CPU only)."""
        if self._cu is not None:
            return self._cu[:-1][self._cu.diff() > 0].to(torch.int64)
        return self._firsts.nonzero()[:, 0]

    @cached_property
    def lengths(self) -> Tensor:
        """[G] tokens of those segments."""
        return torch.cat([self.starts, self.starts.new_tensor([self.length])]).diff()

    @cached_property
    def numbers(self) -> Tensor:
        """[G] numbers of those segments."""
        return self.ids[self.starts] if self._cu is None else self._cu.diff().nonzero()[:, 0]

    @cached_property
    def _firsts(self) -> Tensor:
        firsts = torch.ones_like(self.ids, dtype=torch.bool)
        torch.ne(self.ids[1:], self.ids[:-1], out=firsts[1:])
        return firsts

    @cached_property
    def index(self) -> Tensor:
        """[N] position of each token in the stream."""
        return torch.arange(self.length, device=self.ids.device)

    @cached_property
    def dense(self) -> Tensor:
        """[N] numbers of the segments that hold tokens: below N, so that buckets need no count from the device."""
        return self._firsts.cumsum(0) - 1

    @cached_property
    def start(self) -> Tensor:
        """[N] position of the first token of each token's segment."""
        start = torch.where(self._firsts, self.index, torch.zeros_like(self.index))
        return start.cummax(0).values

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

    def _counts(self, mask: Tensor) -> Tensor:
        """[G] tokens under the mask of each segment that holds tokens, on the CPU."""
        running = torch.cumsum(mask.view(torch.uint8), 0)
        return running[self.starts + self.lengths - 1].diff(prepend=running.new_zeros(1))

    def sequence_sum(self, values: Tensor) -> Tensor:
        """See `Layout.sequence_sum`; [N]."""
        if values.dtype == torch.bool and values.device.type == "cpu":
            counts = self._counts(values).to(prefix_dtype(values.device))
            return counts.repeat_interleave(self.lengths, output_size=self.length)
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
        if mask.device.type == "cpu":
            return self._counts(mask).count_nonzero()
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
        if values.shape == (self.length,):
            return values
        if values.device.type == "cpu":
            return values[self.numbers].repeat_interleave(self.lengths, output_size=self.length)
        return values[self.ids]


def packed_from(cu_seqlens: Tensor, length: int, segments: int | None) -> Packed:
    """Layout of a stream of given cumulative lengths.

    Args:
        cu_seqlens: [S + 1] cumulative lengths, from 0 to N, as varlen attention takes them.
        length: N, tokens in the stream.
        segments: number of per-sequence values that must cover the segments, None when there are none.

    Raises:
        ValueError: not 1-D, or (looked at on the CPU only) not running from 0 to N without falling, or with
            tokens in segments that have no value.
    """
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens: shape {tuple(cu_seqlens.shape)}; expected [S + 1].")
    if cu_seqlens.device.type != "cpu":
        positions = torch.arange(length, device=cu_seqlens.device)
        # Counting the boundaries at or before a position also skips empty segments, and reads no value on the
        # host.
        return Packed(torch.searchsorted(cu_seqlens[1:].contiguous(), positions, right=True))
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != length or bool((cu_seqlens.diff() < 0).any()):
        raise ValueError(
            f"cu_seqlens: runs from {first} to {last}; expected to rise from 0 to {length} (tokens)."
        )
    packed = Packed(cu_seqlens=cu_seqlens)
    if segments is not None and length:
        checks.segment_numbers(0, int(packed.numbers[-1]), segments)
    return packed
