"""How the streaming pass cuts a batch into pieces that stay in cache, and sums along sequences across the cuts.

A piece is a pair of slices (rows, columns). Short rows go several to a piece. A long row, or a packed stream
taken as one row, is cut across, and what a prefix has gathered is carried over the cut in double precision.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

Place = tuple[slice, slice]

MARGIN: Final = 16
"""Numbers before a cut row's buffer, of which `CutRows.prefix_sum` uses two; the rest keeps the buffer aligned."""

STRETCH: Final = 512
"""Most tokens of a stretch, by which a piece is looked over."""


def _stretch(width: int) -> tuple[int, int]:
    """Stretches of a row and the tokens of each, which leave little over."""
    count = -(-width // STRETCH)
    return count, -(-width // count)


def _counts(mask: Tensor, spare: Tensor, dtype: torch.dtype) -> Tensor:
    """Running counts of integers, in the place of a spare buffer."""
    room = spare.as_strided((mask.numel(),), (1,)).view(dtype)[: mask.numel()].view(mask.shape)
    return torch.cumsum(mask, -1, dtype=dtype, out=room)


def two(place: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Two small buffers in the place of a large one."""
    first, second = place.as_strided((2, *shape), (shape[0] * shape[1], shape[1], 1))
    return first, second


def flat(x: Tensor) -> Tensor:
    """A piece as a vector; of a buffer with what pads its rows, where there is nothing but zeros."""
    return x.view(-1) if x.is_contiguous() else x.as_strided((x.shape[0] * x.stride(0),), (1,))


class WholeRows:
    """Pieces of complete rows; sums along a row need no carry.

    Args:
        rows, length: shape of the batch, both positive.
        block: tokens a piece, about; a row is never cut.
    """

    def __init__(self, rows: int, length: int, block: int) -> None:
        self.rows, self.length = rows, length
        self.height, self.width = max(1, min(rows, block // length)), length
        self.many, self.size = _stretch(self.width)

    def __iter__(self) -> Iterator[Place]:
        for top in range(0, self.rows, self.height):
            yield slice(top, min(top + self.height, self.rows)), slice(0, self.length)

    def cut(self, x: Tensor) -> list[Tensor]:
        """Views of the pieces of a [B, T] or [B, 1] tensor."""
        return [x] if self.height == self.rows else list(x.split(self.height))  # type: ignore[no-untyped-call]

    def room(self, count: int, dtype: torch.dtype) -> list[Tensor]:
        """Buffers for the largest piece, rows padded with zeros to whole stretches."""
        padded = [torch.empty(self.height, self.many * self.size, dtype=dtype) for _ in range(count)]
        if self.many * self.size > self.width:
            for buffer in padded:
                buffer[:, self.width :] = 0
        return [buffer[:, : self.width] for buffer in padded]

    def stretches(self, x: Tensor) -> Tensor:
        """Stretches of a buffer's piece, those of a row one after the other."""
        return x.as_strided((x.shape[0] * self.many, self.size), (self.size, 1))

    def tokens_before(self, place: Place) -> float:
        """Tokens of the row before the piece."""
        return 0.0

    def pass_over(self, place: Place, lengths: Tensor) -> None:
        """Instead of `positions`, for a piece whose tokens are counted already."""

    def prefix_sum(self, x: Tensor, place: Place) -> float:
        """Inclusive sum along each row, in place; torch's float32 CPU kernel accumulates in double by itself.

        Returns:
            Sum of the piece.
        """
        torch.cumsum(x, -1, out=x)
        return float(x[:, -1].sum())

    def positions(self, mask: Tensor, out: Tensor, spare: Tensor, place: Place, lengths: Tensor) -> None:
        """Bits of the mask so far along each row; in integers two to three times as fast as in floats.

        `lengths` receives those of each of the piece's rows.
        """
        out.copy_(_counts(mask, spare, torch.int16 if self.length < 1 << 15 else torch.int32))
        lengths.copy_(out[:, -1])

    def least_before(self, x: Tensor, place: Place, none: float) -> Tensor:
        """Minimum strictly before each token of a row, `none` at the first."""
        running = torch.cummin(x, -1).values
        return torch.cat([torch.full_like(x[:, :1], none), running[:, :-1]], dim=-1)

    def sequence_sum(self, x: Tensor, place: Place, what: str) -> Tensor:
        """Sum of each row in double precision, [rows, 1]."""
        return x.sum(-1, keepdim=True, dtype=torch.float64)


class CutRows:
    """Pieces of one row each. With `starts` the only row is a packed stream.

    Args:
        rows, length: shape of the batch, both positive.
        block: most tokens a piece.
        starts: position of the first token of every sequence of the stream, rising from 0.
    """

    def __init__(self, rows: int, length: int, block: int, starts: list[int] | None = None) -> None:
        self.rows, self.length, self.starts = rows, length, starts
        self.height, self.width = 1, -(-length // -(-length // block))
        self.size = _stretch(self.width)[1]
        self.carried: dict[str, float] = {}
        self.totals: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[Place]:
        for row in range(self.rows):
            for left in range(0, self.length, self.width):
                yield slice(row, row + 1), slice(left, min(left + self.width, self.length))

    def cut(self, x: Tensor) -> list[Tensor]:
        """Views of the pieces of a [B, T] or [B, 1] tensor."""
        if x.shape[-1] == self.length:
            return [x[row, columns] for row, columns in self]
        return [x[row] for row, _ in self]

    def _inner(self, columns: slice) -> tuple[list[int], int]:
        """Columns of the piece where a sequence begins, and the number of the first of them."""
        if self.starts is None:
            return ([0] if columns.start == 0 else []), 0
        first, last = bisect_left(self.starts, columns.start), bisect_left(self.starts, columns.stop)
        return [start - columns.start for start in self.starts[first:last]], first

    def room(self, count: int, dtype: torch.dtype) -> list[Tensor]:
        """Buffers for the largest piece, each with a margin in front of it, and padded to whole stretches."""
        padded = -(-self.width // self.size) * self.size
        wide = [torch.empty(MARGIN + padded, dtype=dtype)[MARGIN:] for _ in range(count)]
        return [buffer[: self.width].unsqueeze(0) for buffer in wide]

    def stretches(self, x: Tensor) -> Tensor:
        """Stretches of a buffer's piece; the last is filled up with zeros."""
        width = x.shape[1]
        many = -(-width // self.size)
        if many * self.size > width:
            x.as_strided((many * self.size - width,), (1,), x.storage_offset() + width).zero_()
        return x.as_strided((many, self.size), (self.size, 1))

    def tokens_before(self, place: Place) -> float:
        """Tokens of the row before the piece; not of a packed stream."""
        return self.carried["t"] if place[1].start else 0.0

    def pass_over(self, place: Place, lengths: Tensor) -> None:
        """Instead of `positions`, for a piece whose tokens are counted already."""
        self.carried["t"] = self.tokens_before(place) + float(lengths)

    def prefix_sum(self, x: Tensor, place: Place) -> float:
        """Inclusive sum along each sequence, in place; `x` has a margin before it.

        Returns:
            Sum of the piece.
        """
        inner, _ = self._inner(place[1])
        if inner in ([], [0]):
            # The carry, split in two float32 that hold it to 48 bits, goes before the piece into the kernel's
            # double precision accumulator.
            before, total = 0.0 if inner else self.carried["d"], float(x.sum(dtype=torch.float64))
            self.carried["d"] = before + total
            run = torch.as_strided(x, (x.shape[1] + 2,), (1,), x.storage_offset() - 2)
            run[0] = before
            run[1] = before - float(run[0])
            torch.cumsum(run, 0, out=run)
            return total
        wide = torch.cumsum(x[0], 0, dtype=torch.float64)
        total = float(wide[-1])
        x[0] = self._restart(wide, inner, "d")
        return total

    def positions(self, mask: Tensor, out: Tensor, spare: Tensor, place: Place, lengths: Tensor) -> None:
        """Bits of the mask so far along each sequence; `lengths` receives those of the piece."""
        running, (inner, _) = _counts(mask, spare, torch.int32), self._inner(place[1])
        lengths.copy_(running[0, -1])
        if inner in ([], [0]):
            before = 0.0 if inner else self.carried["t"]
            self.carried["t"] = before + int(running[0, -1])
            out.copy_(running).add_(before)
            return
        out[0] = self._restart(running[0].double(), inner, "t")

    def _restart(self, wide: Tensor, inner: list[int], what: str) -> Tensor:
        """A running sum that begins anew at some columns; `what` names the quantity whose sum is carried."""
        edges = torch.tensor([0, *inner, len(wide)])
        befores = wide.new_zeros(len(edges) - 1)  # what `wide` holds from before each run of tokens
        befores[0] = -self.carried.get(what, 0.0)
        late = edges[1:-1] > 0
        befores[1:][late] = wide[edges[1:-1][late] - 1]
        self.carried[what] = float(wide[-1] - befores[-1])
        return wide.sub_(befores.repeat_interleave(edges.diff()))

    def least_before(self, x: Tensor, place: Place, none: float) -> Tensor:
        """Minimum strictly before each token of a row, `none` at the first; not of a packed stream."""
        assert self.starts is None
        before = self.carried["min"] if place[1].start else none
        running = torch.cummin(x, -1).values.clamp_(max=before)
        self.carried["min"] = float(running[0, -1])
        return torch.cat([torch.full_like(x[:, :1], before), running[:, :-1]], dim=-1)

    def add_to_totals(self, x: Tensor, place: Place, what: str) -> None:
        """Gather the sequences' sums over a first pass."""
        count = self.rows if self.starts is None else len(self.starts)
        totals = self.totals.setdefault(what, x.new_zeros(count, dtype=torch.float64))
        if self.starts is None:
            totals[place[0]] += x.sum(dtype=torch.float64)
            return
        inner, first = self._inner(place[1])
        running = torch.cat([x.new_zeros(1, dtype=torch.float64), torch.cumsum(x[0], 0, dtype=torch.float64)])
        sums = running[torch.tensor([0, *inner, x.shape[1]])].diff()
        begins = first - 1  # the sequence that runs into the piece, if any
        if begins < 0:
            begins, sums = 0, sums[1:]
        totals[begins : begins + len(sums)] += sums

    def sequence_sum(self, x: Tensor, place: Place, what: str) -> Tensor:
        """Sums of the first pass at the tokens of a piece, [1, 1] or [1, width]."""
        if self.starts is None:
            return self.totals[what][place[0]].unsqueeze(-1)
        inner, first = self._inner(place[1])
        lengths = torch.tensor([0, *inner, x.shape[1]]).diff()
        if first == 0:
            return self.totals[what][: len(inner)].repeat_interleave(lengths[1:]).unsqueeze(0)
        return self.totals[what][first - 1 : first + len(inner)].repeat_interleave(lengths).unsqueeze(0)
