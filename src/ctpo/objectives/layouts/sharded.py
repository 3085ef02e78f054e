"""Sequences sharded over a process group (context parallelism): every rank holds some positions of each sequence.

Only detached statistics cross ranks, in the forward pass. The backward pass needs no collective. Each rank's loss is
its share: the shares add up to the loss of the whole sequences, and so do the gradients.

Shapes: B rows, t positions per rank, W ranks, K chunks per rank.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.layouts.packed import Packed
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.layouts.recurrence import decayed_sum, linear_recurrence
from ctpo.objectives.numerics import prefix_dtype, reads_are_free


@dataclass(frozen=True, eq=False)
class SequenceShard:
    """Where a rank's tokens lie in the whole sequences. All ranks hold equally many tokens.

    Give `positions` or `chunk_ids`; `contiguous`, `zigzag` and `striped` make the usual ones.

    Attributes:
        group: the process group that shares the sequences; None is the default group.
        positions: [t] the global position of each local column (of each token, if packed), in any order.
        chunk_ids: [K] the global number of each of K equal local chunks. Ranks then exchange K sums per row instead of
            every token.

    Raises:
        ValueError: both or neither is given, or one is not a 1-D integer tensor.
    """

    group: dist.ProcessGroup | None = None
    positions: Tensor | None = None
    chunk_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.positions is None) == (self.chunk_ids is None):
            raise ValueError("positions, chunk_ids: give exactly one of them.")
        for name, value in (("positions", self.positions), ("chunk_ids", self.chunk_ids)):
            if value is not None and (value.ndim != 1 or value.is_floating_point()):
                raise ValueError(
                    f"{name}: {value.dtype} {tuple(value.shape)}; expected a 1-D integer tensor."
                )
        if self.chunk_ids is not None and self.chunk_ids.numel() == 0:
            raise ValueError("chunk_ids: none; every rank holds at least one chunk (its tokens may be none).")

    def token_positions(self, length: int) -> Tensor:
        """The global positions [t] of `length` local tokens.

        Raises:
            ValueError: the length does not fit the positions, or is not a multiple of the number of chunks.
        """
        if self.positions is not None:
            if self.positions.shape[0] != length:
                raise ValueError(f"positions: {self.positions.shape[0]} of them for {length} local tokens.")
            return self.positions
        assert self.chunk_ids is not None
        if length % self.chunk_ids.shape[0]:
            raise ValueError(
                f"chunk_ids: {self.chunk_ids.shape[0]} chunks do not divide {length} local tokens."
            )
        size = length // self.chunk_ids.shape[0]
        inside = torch.arange(size, device=self.chunk_ids.device)
        return (self.chunk_ids.unsqueeze(-1) * size + inside).reshape(-1)


def contiguous(group: dist.ProcessGroup | None = None) -> SequenceShard:
    """Rank r holds the r-th of W equal pieces."""
    return SequenceShard(group, chunk_ids=torch.tensor([dist.get_rank(group)]))


def zigzag(group: dist.ProcessGroup | None = None) -> SequenceShard:
    """Rank r holds pieces r and 2W − 1 − r of 2W, which evens out causal attention."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    return SequenceShard(group, chunk_ids=torch.tensor([rank, 2 * world - 1 - rank]))


def striped(length: int, group: dist.ProcessGroup | None = None) -> SequenceShard:
    """Rank r holds positions r, r + W, r + 2W, …; `length` of them."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    return SequenceShard(group, positions=torch.arange(length) * world + rank)


def _refuse_repeats(positions: Tensor) -> None:
    repeated = positions[1:][positions.diff() == 0]
    if repeated.numel():
        raise ValueError(
            f"shard: more than one token holds position {int(repeated[0])}; positions and "
            "chunk_ids number the whole sequence, not the tokens of one rank."
        )


def _refuse_decrease(ids: Tensor) -> None:
    falls = (ids.diff() < 0).nonzero()
    if falls.numel():
        at = int(falls[0]) + 1
        raise ValueError(
            f"segment_ids: {int(ids[at])} follows {int(ids[at - 1])} in the order of the whole batch; they may "
            "not decrease along the positions of all ranks."
        )


class Sharded(Layout):
    """Sums over sharded sequences: gather what is needed, sum in global order, and keep this rank's part.

    Args:
        shard: where the local tokens lie.
        length: t, the number of local tokens.
        device: the device of the tokens.
        segment_ids: [t] the segments of packed tokens, numbered over all ranks; None for padded rows.

    Raises:
        ValueError: two tokens have one position, or segment ids decrease along it. Looked at where reading is free.
    """

    differentiable = False

    def __init__(
        self,
        shard: SequenceShard,
        length: int,
        device: torch.device,
        segment_ids: Tensor | None = None,
    ) -> None:
        self.group = shard.group
        self.world = dist.get_world_size(shard.group)
        rank = dist.get_rank(shard.group)
        everywhere = self._gather(shard.token_positions(length).to(device))
        self.order = everywhere.argsort()
        readable = reads_are_free(everywhere)
        if readable:
            _refuse_repeats(everywhere[self.order])
        self.own = self.order.argsort()[rank * length : (rank + 1) * length]
        self.whole_rows = segment_ids is None
        self.chunks: Tensor | None = None
        self.inner: Layout = Padded()
        self.local_ids = None
        if segment_ids is not None:
            self.local_ids = segment_ids.to(torch.int64)
            ids = self._gather(self.local_ids)[self.order]
            if readable:
                _refuse_decrease(ids)
            self.inner = Packed(ids)
        elif shard.chunk_ids is not None:
            chunks = shard.chunk_ids.to(device)
            self.chunks = self._gather(chunks).argsort()
            self.own_chunks = self.chunks.argsort()[rank * len(chunks) : (rank + 1) * len(chunks)]

    def _gather(self, values: Tensor) -> Tensor:
        """The values of all ranks side by side along the last dimension, in the order of the ranks."""
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.detach().contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def _global(self, values: Tensor) -> Tensor:
        return self._gather(values)[..., self.order]

    def _wide(self, values: Tensor) -> Tensor:
        return values.detach().to(prefix_dtype(values.device))

    def _before(self, totals: Tensor) -> Tensor:
        """[B, K] the sum of the chunks before each chunk of this rank, from the totals [B, K] of its own chunks."""
        assert self.chunks is not None
        ordered = self._gather(totals)[..., self.chunks]
        return (ordered.cumsum(-1) - ordered)[..., self.own_chunks]

    def prefix_sum(self, values: Tensor) -> Tensor:
        wide = self._wide(values)
        if self.chunks is None:
            return self.inner.prefix_sum(self._global(wide))[..., self.own]
        count = len(self.own_chunks)
        local = wide.reshape(*wide.shape[:-1], count, wide.shape[-1] // count).cumsum(-1)
        totals = local[..., -1] if local.shape[-1] else local.sum(-1)
        return (local + self._before(totals).unsqueeze(-1)).reshape(wide.shape)

    def decayed_sum(self, values: Tensor, steps: Tensor, decay: float) -> Tensor:
        """A chunk takes over the sum of the chunks before it, decayed once more by each of its own tokens."""
        wide = self._wide(values)
        if self.chunks is None:
            everywhere = self._global(steps.to(torch.uint8)) > 0
            return self.inner.decayed_sum(self._global(wide), everywhere, decay)[..., self.own]
        count = len(self.own_chunks)
        shape = (*wide.shape[:-1], count, wide.shape[-1] // count)
        if shape[-1] == 0:
            return wide  # on every rank, as all hold equally many tokens
        local = decayed_sum(wide.reshape(shape), steps.reshape(shape), decay)
        left = (steps.reshape(shape).to(wide.dtype).cumsum(-1) * math.log(decay)).exp()  # of what was before
        ends = self._gather(torch.stack([local[..., -1], left[..., -1]]))[..., self.chunks]
        sums = linear_recurrence(*ends)
        before = torch.cat([torch.zeros_like(sums[..., :1]), sums[..., :-1]], dim=-1)[..., self.own_chunks]
        return (local + before.unsqueeze(-1) * left).reshape(wide.shape)

    def suffix_sum(self, values: Tensor) -> Tensor:
        wide = self._wide(values)
        return self.sequence_sum(wide) - self.prefix_sum(wide) + wide

    def sequence_sum(self, values: Tensor) -> Tensor:
        wide = self._wide(values)
        if self.whole_rows:
            return self.sum_shards(wide.sum(-1, keepdim=True))
        return self.inner.sequence_sum(self._global(wide))[..., self.own]

    def sequence_max(self, values: Tensor) -> Tensor:
        if self.whole_rows:
            return self.max_shards(self.inner.sequence_max(values))
        return self.inner.sequence_max(self._global(values.detach()))[..., self.own]

    def prefix_min_before(self, values: Tensor) -> Tensor:
        return self.inner.prefix_min_before(self._global(values.detach()))[..., self.own]

    def sequence_quantile(self, values: Tensor, mask: Tensor, q: float) -> Tensor:
        everywhere = self._global(mask.to(torch.uint8)) > 0
        quantile = self.inner.sequence_quantile(self._global(values.detach()), everywhere, q)
        return quantile if self.whole_rows else quantile[..., self.own]

    def count_sequences(self, mask: Tensor) -> Tensor:
        return self.inner.count_sequences(self._global(mask.to(torch.uint8)) > 0)

    def turns(self, turn_ids: Tensor, mask: Tensor) -> Layout:
        turns = copy.copy(self)
        turns.whole_rows, turns.chunks = False, None
        turns.inner = self.inner.turns(self._global(turn_ids), self._global(mask.to(torch.uint8)) > 0)
        return turns

    def sum_shards(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def max_shards(self, values: Tensor) -> Tensor:
        largest = values.detach().clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return largest

    def gather_shards(self, values: Tensor) -> Tensor:
        return self._gather(values)

    def position_bound(self, length: int) -> int:
        return length * self.world

    def expand(self, values: Tensor) -> Tensor:
        if self.local_ids is None:
            return values.unsqueeze(-1) if values.ndim == 1 else values
        return values if values.shape == self.local_ids.shape else values[self.local_ids]
