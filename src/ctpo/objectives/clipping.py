"""Trust regions of the streaming CPU pass: log weights clamped to the bounds that bind, and counts of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives.plan import Plan
from ctpo.objectives.stats import Sums
from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight

FAR: Final = 1e30
"""Stands for an absent bound: an infinite one would make 0·inf = NaN at t = 0."""


@dataclass(slots=True)
class RowBounds:
    """Bounds of rows with one advantage each, whose sign may pick them, and counts of the tokens that met one."""

    low: Tensor
    high: Tensor
    gain: Tensor
    """[B, 1]: bounds at t = 1, and whether an upper bound is the trust region's own, not the dual one."""
    met: float = 0.0

    @classmethod
    def of(cls, plan: Plan, advantages: Tensor) -> RowBounds:
        """From [B, 1] advantages; of [B, T] those of the first token, unused."""
        first, bases = advantages[:, :1], plan.bases
        gain, harm = first > 0, first < 0
        if isinstance(plan.surrogate, Linear):
            gain = harm = torch.zeros_like(gain)
        elif isinstance(plan.surrogate, StopGradientWeight):
            gain = harm = torch.ones_like(gain)
        low = torch.full_like(first, -FAR).masked_fill_(harm, max(bases.lower, -FAR))
        high = torch.full_like(first, FAR).masked_fill_(gain, min(bases.upper, FAR))
        if bases.dual is not None and isinstance(plan.surrogate, MinClip):
            high.masked_fill_(harm, bases.dual)
        return cls(low, high, gain)

    def count(self, moved: Tensor, balance: float, sums: Sums) -> None:
        """Add counts from each row's sum of signs, [B] in float64, and their sum."""
        _count(sums, float(moved.dot(self.gain[:, 0].double())), balance, self.met)


def clip_rows(
    x: Tensor, scale: Tensor | None, low: Tensor, high: Tensor, clipped: Tensor, met: Tensor, moved: Tensor
) -> float:
    """Clamp log weights to their rows' bounds.

    Args:
        x: [n, T], 0 where a token does not count.
        scale: [n, T] factors of the bounds, or None.
        low, high: [n, 1] bounds.
        clipped: receives the clamped log weights.
        met: receives 1 where a bound was met, else 0.
        moved: [n], receives the number of those lowered less that of those raised.

    Returns:
        Number of tokens that met a bound.
    """
    _clamp(x, scale, low, high, clipped, met)
    torch.sub(x, clipped, out=met).sign_()
    torch.sum(met, -1, out=moved)
    return float(met.mul_(met).sum())


def clip_weights(
    plan: Plan, x: Tensor, scale: Tensor | None, clipped: Tensor, met: Tensor, sums: Sums
) -> float:
    """Clamp to bounds that hold whatever the advantage, and count; returns how many tokens met one."""
    _clamp(x, scale, max(plan.bases.lower, -FAR), min(plan.bases.upper, FAR), clipped, met)
    torch.sub(x, clipped, out=met).sign_()
    balance, total = float(met.sum()), float(met.mul_(met).sum())
    sums.high += (total + balance) / 2
    sums.low += (total - balance) / 2
    return total


def clip_tokens(
    plan: Plan, x: Tensor, scale: Tensor | None, sign: Tensor, clipped: Tensor, met: Tensor, sums: Sums
) -> float:
    """One advantage a token: both kinds of bounds for all, then a choice by 0/1 products; returns as above."""
    bases, gain = plan.bases, sign.clamp(min=0)
    harm = gain - sign
    lowest, dual = -FAR, FAR if bases.dual is None else bases.dual
    _clamp(x, scale, max(bases.lower, lowest), dual, clipped, met)
    other = torch.empty_like(x)
    _clamp(x, scale, lowest, min(bases.upper, FAR), other, met)
    clipped.mul_(harm).add_(other.mul_(gain))
    torch.sub(x, clipped, out=met).mul_(sign.abs_()).sign_()  # advantage 0: no bound, and no loss
    balance, high = float(met.sum()), float(met.reshape(-1).dot(gain.reshape(-1)))
    total = float(met.mul_(met).sum())
    _count(sums, high, balance, total)
    return total


def _clamp(
    x: Tensor, scale: Tensor | None, low: Tensor | float, high: Tensor | float, out: Tensor, spare: Tensor
) -> None:
    """min(max(x, scale·low), scale·high) into `out`; torch.clamp is slow where bounds broadcast."""
    if scale is not None:
        torch.mul(scale, high, out=out)
        torch.clamp(x, torch.mul(scale, low, out=spare), out, out=out)
    elif isinstance(low, Tensor) and isinstance(high, Tensor):
        torch.maximum(torch.minimum(x, high, out=out), low, out=out)
    else:
        torch.clamp(x, float(low), float(high), out=out)


def _count(sums: Sums, high: float, balance: float, total: float) -> None:
    """Add counts, given those met by upper bounds: balance = high + dual − low, total = high + dual + low."""
    low = (total - balance) / 2
    sums.high += high
    sums.low += low
    sums.dual += total - high - low
