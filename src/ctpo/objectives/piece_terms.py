"""From a piece's statistic to its token losses, gradients and statistics; the second half of `stream`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.objectives.clipping import RowBounds, clip_rows, clip_tokens, clip_weights
from ctpo.objectives.near_bounds import FEWEST, Near, Survey
from ctpo.objectives.numerics import EXP_CAP
from ctpo.objectives.piece_reads import exp, extremes, finite, square
from ctpo.objectives.pieces import CutRows, Place, WholeRows, two
from ctpo.objectives.plan import Plan
from ctpo.objectives.ratios import PrefixMeanRatio, TokenRatio
from ctpo.objectives.stats import Sums
from ctpo.objectives.surrogates import Linear, StopGradientWeight


@dataclass(slots=True)
class Piece:
    """Views of one piece of the batch."""

    place: Place
    logps: Tensor
    old: Tensor
    mask: Tensor
    advantages: Tensor
    low: Tensor
    high: Tensor
    """Bounds at t = 1 of rows with one advantage."""
    factor: Tensor
    loss: Tensor
    """Holds positions, and the scale of the bounds, at first."""
    active: Tensor | None
    slope: Tensor | None
    kept: Tensor | None
    grad: Tensor | None
    lengths: Tensor
    moved: Tensor
    sums: Tensor
    """Receive row sums: of the mask, of the signs of what was clipped, of the loss."""


class Terms:
    """Clips, weighs and differentiates pieces.

    Args:
        plan: what to compute.
        pieces: that the batch is cut into.
        row_bounds: of rows with one advantage each; None when advantages are per token.
        length: of the rows.
        sums: to add to.
    """

    def __init__(
        self, plan: Plan, pieces: WholeRows | CutRows, row_bounds: RowBounds | None, length: int, sums: Sums
    ) -> None:
        self.plan, self.pieces, self.row_bounds, self.sums = plan, pieces, row_bounds, sums
        self.ceiling = plan.ceiling(length)
        self.least_ceiling = plan.ratio.log_cap if self.ceiling is None else self.ceiling
        self.power = plan.bases.power
        # A mean comes with its positions, in the place of the losses.
        self.counted = isinstance(plan.ratio, PrefixMeanRatio)
        looks = row_bounds is not None and self.power >= 0 and not self.counted
        self.survey = Survey(pieces, self.power, self.least_ceiling) if looks else None

    def fill(self, piece: Piece, x: Tensor, marked: Tensor, keep: Tensor, a: Tensor, b: Tensor) -> None:
        """Outputs of one piece, given its statistic `x`; `a` (which may be the gradient's place) and `b` are spare."""
        # 0 lies within every trust region: a token that does not count can meet no bound.
        x.mul_(keep)
        near = None
        if self.survey is not None and keep is marked and x.numel() >= FEWEST:
            near = self.survey.near(piece.place, x, marked, piece.low, piece.high, piece.lengths)
            if near is None:
                self.survey = None  # the other pieces will hardly be better
        if near is None:
            self._fill_all(piece, x, marked, keep, a, b)
        else:
            self._fill_near(near, piece, x, keep, a, b)

    def _fill_all(self, piece: Piece, x: Tensor, marked: Tensor, keep: Tensor, a: Tensor, b: Tensor) -> None:
        """With the bounds of every token."""
        scale = self._scale(piece, marked, b)
        advantages = finite(piece.advantages, keep) if self.row_bounds is None else piece.advantages
        met = self._clip(x, scale, advantages, piece.low, piece.high, a, b, piece.moved)
        if piece.active is not None:
            piece.active.copy_(b).logical_not_()
        lowest, highest = extremes(x, keep)
        if highest > self.least_ceiling:
            self._truncate(x, a, scale)
            lowest, highest = extremes(x, keep)
        self._add_weights(x, keep, lowest, highest, piece.loss)
        # Where no bound was met the weights of the loss are those just added up.
        weight = exp(a, out=a).mul_(keep) if met else x
        self._fill_losses(piece, weight, -advantages)
        if piece.grad is None:
            return
        if piece.slope is not None:
            torch.mul(piece.slope, piece.factor, out=piece.grad)
        else:
            torch.addcmul(piece.loss, piece.loss, b, value=-1, out=piece.grad).mul_(piece.factor)

    def _fill_near(self, near: Near, piece: Piece, x: Tensor, keep: Tensor, a: Tensor, b: Tensor) -> None:
        """With the bounds of some stretches, whose values go to small buffers and back into the piece."""
        index, values = near.index, self.pieces.stretches(x)
        lowest, highest = extremes(x, keep, (near.least, near.most))
        shape = (len(index), values.shape[1])
        (clipped, some), (hit, kept) = two(b, shape), two(a, shape)
        met = 0.0
        if len(index):
            torch.index_select(values, 0, index, out=some)
            torch.index_select(self.pieces.stretches(keep), 0, index, out=kept)
            scale = near.scale(kept, self.power, two(piece.loss, shape)[0])
            low, high, moved = piece.low[near.rows], piece.high[near.rows], x.new_empty(len(index))
            met = self._clip(some, scale, None, low, high, clipped, hit, moved)
            piece.moved.index_add_(0, near.rows, moved)
            if highest > self.least_ceiling:
                self._truncate(some, clipped, scale)
                values.index_copy_(0, index, some)
                lowest, highest = extremes(x, keep)
        self._add_weights(x, keep, lowest, highest, piece.loss)
        if met:
            values.index_copy_(0, index, exp(clipped, out=clipped).mul_(kept))
        self._fill_losses(piece, x, -piece.advantages)
        if met and piece.slope is None:
            values.index_copy_(0, index, clipped.addcmul_(clipped, hit, value=-1))
        if piece.active is not None:
            piece.active.copy_(x)  # a token of weight 0 has slope 0 as well
        if piece.grad is not None:
            torch.mul(x, -piece.advantages * piece.factor, out=piece.grad)

    def _scale(self, piece: Piece, marked: Tensor, spare: Tensor) -> Tensor | None:
        """Scale of the bounds in the place of the losses, None if it is 1 everywhere; and the rows' tokens."""
        scale = piece.loss
        if self.plan.scaled and not self.counted:
            self.pieces.positions(piece.mask, scale, spare, piece.place, piece.lengths)
            if self.power < 0:
                scale.clamp_(min=1)
        elif not self.counted:
            torch.sum(marked, -1, out=piece.lengths)
        return torch.pow(scale, self.power, out=scale) if self.plan.scaled else None

    def _clip(
        self, x: Tensor, scale: Tensor | None, advantages: Tensor | None, low: Tensor, high: Tensor,
        clipped: Tensor, met: Tensor, moved: Tensor,
    ) -> float:  # fmt: skip
        """Clipped statistic, and 1 where a bound was met, which are counted; how many there are."""
        if isinstance(self.plan.surrogate, Linear):
            met.zero_()
            return 0.0
        if isinstance(self.plan.surrogate, StopGradientWeight):
            return clip_weights(self.plan, x, scale, clipped, met, self.sums)
        if self.row_bounds is None:
            assert advantages is not None
            return clip_tokens(self.plan, x, scale, advantages.sign(), clipped, met, self.sums)
        total = clip_rows(x, scale, low, high, clipped, met, moved)
        self.row_bounds.met += total
        return total

    def _truncate(self, x: Tensor, clipped: Tensor, scale: Tensor | None) -> None:
        """Both kinds of log weights, in place, at the ceiling."""
        ceiling: float | Tensor | None = self.ceiling
        if ceiling is None:
            assert scale is not None
            bounds = (self.plan.bases.upper, self.plan.bases.dual)
            widest = max(b for b in bounds if b is not None and not math.isinf(b))
            ceiling = scale.mul(widest).clamp_(min=self.plan.ratio.log_cap, max=EXP_CAP)
        for exponent in (x, clipped):
            torch.clamp(exponent, max=ceiling, out=exponent)

    def _add_weights(self, x: Tensor, keep: Tensor, lowest: float, highest: float, spare: Tensor) -> None:
        """Add the sums of the truncated log weights, and of the weights (left in `x`), over the usable tokens."""
        sums, linear = self.sums, float(x.sum())
        sums.x += linear
        sums.xx += square(x)
        sums.lowest, sums.highest = min(sums.lowest, lowest), max(sums.highest, highest)
        weight = exp(x, out=x).mul_(keep)
        if isinstance(self.plan.ratio, TokenRatio):  # the weight is e^d
            sums.k3 += float(torch.sub(x, keep, out=spare).sum()) - linear
        if 2 * highest > EXP_CAP:
            weight = weight.double()  # the square would overflow float32
        sums.weight += float(weight.sum())
        sums.weight_squared += square(weight)

    def _fill_losses(self, piece: Piece, weight: Tensor, negative: Tensor) -> None:
        """Token losses, and slopes where asked for, from weights and advantages times −1."""
        torch.mul(weight, negative, out=piece.loss if piece.slope is None else piece.slope)
        if piece.slope is None:
            return
        logps = piece.logps.to(weight.dtype)
        if not math.isfinite(float(torch.mul(piece.slope, logps, out=piece.loss).sum())):
            piece.loss.copy_(torch.where(piece.slope != 0, piece.slope * logps, 0.0))
