"""From a piece's statistic to its token losses, gradients and statistics; the second half of `stream`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.objectives.clipping import RowBounds, clip_rows, clip_tokens, clip_weights
from ctpo.objectives.numerics import EXP_CAP
from ctpo.objectives.piece_reads import exp, extremes, finite, square
from ctpo.objectives.pieces import Place
from ctpo.objectives.plan import Plan
from ctpo.objectives.ratios import TokenRatio
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
    """Holds the scale of the bounds at first."""
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
        row_bounds: of rows with one advantage each; None when advantages are per token.
        length: of the rows.
        sums: to add to.
    """

    def __init__(self, plan: Plan, row_bounds: RowBounds | None, length: int, sums: Sums) -> None:
        self.plan, self.row_bounds, self.sums = plan, row_bounds, sums
        self.ceiling = plan.ceiling(length)
        self.least_ceiling = plan.ratio.log_cap if self.ceiling is None else self.ceiling

    def fill(self, piece: Piece, x: Tensor, keep: Tensor, a: Tensor, b: Tensor) -> None:
        """Outputs of one piece, given its statistic `x`; `a` (which may be the gradient's place) and `b` are spare."""
        # 0 lies within every trust region: a token that does not count can meet no bound.
        x.mul_(keep)
        advantages = finite(piece.advantages, keep) if self.row_bounds is None else piece.advantages
        met = self._clip(piece, x, advantages, a, b)
        if piece.active is not None:
            piece.active.copy_(b).logical_not_()
        lowest, highest = extremes(x, keep)
        if highest > self.least_ceiling:
            ceiling = self._ceiling_at(piece.loss) if self.ceiling is None else self.ceiling
            if met:
                torch.clamp(a, max=ceiling, out=a)
            x.clamp_(max=ceiling)
            lowest, highest = extremes(x, keep)
        linear = self._add_weights(x, keep, lowest, highest)
        # Where no bound was met the weights of the loss are those just added up.
        weight = exp(a, out=a).mul_(keep) if met else x
        torch.mul(weight, -advantages, out=piece.loss if piece.slope is None else piece.slope)
        if piece.slope is not None:
            logps = piece.logps.to(x.dtype)
            if not math.isfinite(float(torch.mul(piece.slope, logps, out=piece.loss).sum())):
                piece.loss.copy_(torch.where(keep != 0, piece.slope * logps, 0.0))
        if piece.grad is not None:
            self._differentiate(piece, b)
        if isinstance(self.plan.ratio, TokenRatio):  # the weight is e^d
            self.sums.k3 += float(x.sub_(keep).sum()) - linear

    def _clip(self, piece: Piece, x: Tensor, advantages: Tensor, clipped: Tensor, met: Tensor) -> float:
        """Clipped statistic, and 1 where a bound was met, which are counted; how many there are."""
        scale = piece.loss if self.plan.scaled else None
        if isinstance(self.plan.surrogate, Linear):
            met.zero_()
            return 0.0
        if isinstance(self.plan.surrogate, StopGradientWeight):
            return clip_weights(self.plan, x, scale, clipped, met, self.sums)
        if self.row_bounds is None:
            return clip_tokens(self.plan, x, scale, advantages.sign(), clipped, met, self.sums)
        total = clip_rows(x, scale, piece.low, piece.high, clipped, met, piece.moved)
        self.row_bounds.met += total
        return total

    def _ceiling_at(self, scale: Tensor) -> Tensor:
        bounds = (self.plan.bases.upper, self.plan.bases.dual)
        widest = max(b for b in bounds if b is not None and not math.isinf(b))
        return scale.mul(widest).clamp_(min=self.plan.ratio.log_cap, max=EXP_CAP)

    def _differentiate(self, piece: Piece, met: Tensor) -> None:
        """Slopes of active tokens times the factor."""
        assert piece.grad is not None
        if piece.slope is not None:
            torch.mul(piece.slope, piece.factor, out=piece.grad)
        else:
            torch.addcmul(piece.loss, piece.loss, met, value=-1, out=piece.grad).mul_(piece.factor)

    def _add_weights(self, x: Tensor, keep: Tensor, lowest: float, highest: float) -> float:
        """Add the sums of the truncated log weights, and of the weights (left in `x`), over the usable tokens.

        Returns:
            Sum of the log weights.
        """
        sums, linear = self.sums, float(x.sum())
        sums.x += linear
        sums.xx += square(x)
        sums.lowest, sums.highest = min(sums.lowest, lowest), max(sums.highest, highest)
        weight = exp(x, out=x).mul_(keep)
        if 2 * highest > EXP_CAP:
            weight = weight.double()  # the square would overflow float32
        sums.weight += float(weight.sum())
        sums.weight_squared += square(weight)
        return linear
