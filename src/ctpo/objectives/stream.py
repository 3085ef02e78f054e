"""The streaming pass of the fused path on the CPU: pieces of a batch through buffers that stay in cache.

Every operation is in place and vectorised: torch's CPU comparisons, `where` and products of mixed dtypes cost
five times a float product. So masks and decisions are 0/1 and ±1 floats, bounds are met by minimum and maximum,
and values are made finite before a product may drop them. Where a cheap sum shows that a piece holds something
unusable, it takes the slow operations. Decisions are `compose`'s, value for value. This file goes from log-probs
to the ratio's statistic, `piece_terms` from there to losses and gradients.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives.clipping import FAR, RowBounds
from ctpo.objectives.numerics import SATURATION
from ctpo.objectives.piece_reads import NO_TOKEN, all_usable, exp, square
from ctpo.objectives.piece_terms import Piece, Terms
from ctpo.objectives.pieces import CutRows, Place, WholeRows
from ctpo.objectives.plan import Plan
from ctpo.objectives.ratios import (
    CumulativeRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.stats import Sums

BLOCK: Final = 1 << 18
"""Most tokens a piece: enough to amortise some forty calls, few enough for three float32 buffers to stay in a
core's share of the cache."""


class Stream:
    """One forward pass. `fill` writes the outputs and adds to `sums`.

    Args:
        plan: what to compute.
        logps, old_logps, mask: [B, T] with at least one token; [1, N] for a packed stream.
        advantages: [B, 1], [B, T] or [1, N] in the compute dtype.
        factor: of the token losses, 0-d, [B, 1] or [1, N].
        sums: to add to.
        starts: positions of the first tokens of a packed stream's sequences.
    """

    def __init__(
        self, plan: Plan, logps: Tensor, old_logps: Tensor, mask: Tensor, advantages: Tensor, factor: Tensor,
        sums: Sums, starts: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.sums, self.factor, self.dtype = plan, sums, factor, advantages.dtype
        self.logps, self.old, self.mask = logps, old_logps, mask
        (self.rows, self.length), whole = logps.shape, starts is None and logps.shape[1] <= BLOCK
        self.pieces: WholeRows | CutRows = (
            WholeRows(self.rows, self.length, BLOCK)
            if whole
            else CutRows(self.rows, self.length, BLOCK, starts)
        )
        self.row_level = advantages.shape[-1] == 1 and starts is None
        if self.row_level and not math.isfinite(float(advantages.sum())):
            # A row without tokens may hold a NaN, which must not meet its zeros.
            advantages = torch.where(mask.any(-1, keepdim=True), advantages, 0.0)
        self.advantages, self.row_bounds = advantages, RowBounds.of(plan, advantages)
        self.terms = Terms(plan, self.pieces, self.row_bounds if self.row_level else None, self.length, sums)

    def fill(
        self, loss: Tensor, active: Tensor | None, slope: Tensor | None, kept: Tensor | None,
        grad: Tensor | None,
    ) -> float:  # fmt: skip
        """Token losses, activity bits, slopes, usable tokens and gradients of the loss, as far as asked for.

        Returns:
            Sum of the token losses times their factors.
        """
        room = self.pieces.room(4 if grad is None else 3, self.dtype)
        row_sums, pieces = self._cut(loss, active, slope, kept, grad)
        ratio, largest = self.plan.ratio, room[0].shape
        if isinstance(self.pieces, CutRows) and isinstance(ratio, (SequenceRatio, SequenceMeanRatio)):
            self._gather_totals(self.pieces, pieces, room)
        for piece in pieces:
            height, width = shape = piece.loss.shape
            spare = room if shape == largest else [part[:height, :width] for part in room]
            x, marked, b, a = spare if piece.grad is None else (*spare, piece.grad)
            keep = self._load(piece, x, marked)
            if not isinstance(ratio, TokenRatio):
                self._add_exponentials(x, a)
            self._accumulate(piece, x, marked, b)
            if piece.kept is not None:
                piece.kept.copy_(keep)
            self.terms.fill(piece, x, marked, keep, a, b)
            if self.factor.ndim == 0 or self.factor.shape[-1] == 1:
                torch.sum(piece.loss, -1, out=piece.sums)
            else:
                piece.sums.fill_(piece.loss.reshape(-1).dot(piece.factor.reshape(-1)))
        return self._finish(row_sums)

    def _cut(self, *outputs: Tensor | None) -> tuple[Tensor, list[Piece]]:
        """Room for the row sums of lengths, signs and losses, and the pieces that fill it."""
        height, places = self.pieces.height, list(self.pieces)
        room = torch.zeros(3, sum(r.stop - r.start for r, _ in places), dtype=self.dtype)
        bounds = (self.row_bounds.low, self.row_bounds.high)
        inputs = (self.logps, self.old, self.mask.view(torch.uint8), self.advantages, *bounds, self.factor)

        def cut(x: Tensor | None) -> list[Any]:
            return [x] * len(places) if x is None or x.ndim == 0 else self.pieces.cut(x)

        views = [cut(x) for x in (*inputs, *outputs)]
        sums = [torch.split(room[k], height) for k in range(3)]
        return room, [Piece(*parts) for parts in zip(places, *views, *sums, strict=True)]

    def _finish(self, room: Tensor) -> float:
        """Add what follows from the row sums; the loss."""
        of_rows = room.double().view(3, self.rows, -1).sum(-1)
        tokens, balance, loss = map(float, of_rows.sum(-1).tolist())
        self.sums.tokens = tokens
        self.sums.usable += tokens
        self.sums.sequences = float(of_rows[0].count_nonzero())
        if isinstance(self.plan.ratio, TokenRatio):
            self.sums.d, self.sums.dd = self.sums.x, self.sums.xx  # one and the same, never truncated
        else:
            self.sums.k3 -= self.sums.d
        if self.row_bounds.met:
            self.row_bounds.count(of_rows[1], balance, self.sums)
        if self.factor.ndim == 0:
            return loss * float(self.factor)
        return float(of_rows[2].dot(self.factor[:, 0].double())) if self.factor.shape[-1] == 1 else loss

    def _gather_totals(self, cut: CutRows, pieces: list[Piece], room: list[Tensor]) -> None:
        """First pass over cut rows: sums of whole sequences, nothing else."""
        sums, self.sums = self.sums, Sums()
        for piece in pieces:
            x, marked = (part[:, : piece.loss.shape[1]] for part in room[:2])
            self._load(piece, x, marked)
            cut.add_to_totals(x, piece.place, "d")
            cut.add_to_totals(marked, piece.place, "t")
        self.sums = sums

    def _load(self, piece: Piece, x: Tensor, marked: Tensor) -> Tensor:
        """Token log ratios into `x`, 0 where not usable, and the mask as 0/1 into `marked`.

        Returns:
            Usable tokens as 0/1: `marked` where all under the mask are.
        """
        keep = marked.copy_(piece.mask)
        self._difference(piece, x).mul_(marked)
        # At most SATURATION² in all: then no token is beyond it, and none is NaN.
        squares = square(x)
        if not squares <= SATURATION**2:
            if not all_usable(x):  # perhaps only of something infinite outside of the mask
                self._difference(piece, x).nan_to_num_(FAR, FAR, -FAR).mul_(marked)
                keep = marked if all_usable(x) else self._neutralise(piece, x)
            squares = square(x)
        self.sums.dd += squares
        return keep

    def _difference(self, piece: Piece, x: Tensor) -> Tensor:
        return torch.sub(piece.logps.to(self.dtype), piece.old.to(self.dtype), out=x)

    def _neutralise(self, piece: Piece, x: Tensor) -> Tensor:
        """Zero and count what cannot be used (in `x` beyond SATURATION), by `where`; usable tokens as 0/1."""
        mask = piece.mask.view(torch.bool)
        usable = mask & (x.abs() <= SATURATION)
        finite = piece.logps.isfinite() & piece.old.isfinite()
        nonfinite, saturated = float((mask & ~finite).sum()), float((mask & finite & ~usable).sum())
        self.sums.nonfinite += nonfinite
        self.sums.saturated += saturated
        self.sums.usable -= nonfinite + saturated
        x.copy_(torch.where(usable, x, 0.0))
        return usable.to(self.dtype)

    def _add_exponentials(self, d: Tensor, spare: Tensor) -> None:
        """Add Σ(e^d − 1), to 1e-7 a token in float32: far below any KL of note. `_finish` takes Σd off."""
        self.sums.k3 += float(exp(d, out=spare).sub_(1).sum())

    def _accumulate(self, piece: Piece, x: Tensor, marked: Tensor, spare: Tensor) -> None:
        """Token log ratios to the ratio's statistic, in place; of a mean also positions, in the place of the losses."""
        ratio, pieces, place = self.plan.ratio, self.pieces, piece.place
        if isinstance(ratio, (CumulativeRatio, PrefixMeanRatio)):
            self.sums.d += pieces.prefix_sum(x, place)
        else:
            self.sums.d += float(x.sum())
        if isinstance(ratio, PrefixMeanRatio):
            pieces.positions(piece.mask, piece.loss, spare, place, piece.lengths)
            x.div_(piece.loss.clamp_(min=1))
        elif isinstance(ratio, SequenceRatio):
            x.copy_(pieces.sequence_sum(x, place, "d"))
        elif isinstance(ratio, SequenceMeanRatio):
            x.copy_(pieces.sequence_sum(x, place, "d") / self._lengths(piece, marked).clamp(min=1))
        elif isinstance(ratio, MinPrefixRatio):
            self._add_smallest_before(place, x, marked)
        elif isinstance(ratio, UnitRatio):
            x.zero_()

    def _lengths(self, piece: Piece, marked: Tensor) -> Tensor:
        """Tokens of the sequences of a piece, which broadcast."""
        if isinstance(self.pieces, WholeRows):
            return marked.sum(-1, keepdim=True)
        return self.pieces.sequence_sum(marked, piece.place, "t")

    def _add_smallest_before(self, place: Place, x: Tensor, marked: Tensor) -> None:
        """Add the least log ratio strictly before each token, 0 where there is none."""
        unmarked = torch.mul(marked, -FAR).add_(FAR)
        least = self.pieces.least_before(unmarked.add_(x), place, FAR)
        x.sub_(torch.nn.functional.threshold(least.neg_(), -NO_TOKEN, 0.0))
