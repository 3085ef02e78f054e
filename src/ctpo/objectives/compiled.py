"""The streaming pass with its elementwise arithmetic compiled, a loop on each side of torch's prefix sums.

Optional (`backend="compile"`): the first call takes tens of seconds and, on the CPU, a C++ compiler. Sums
stay with torch, whose reductions run at memory speed; inductor would repeat the arithmetic for every few.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ctpo.objectives.numerics import EXP_CAP, SATURATION
from ctpo.objectives.plan import Plan
from ctpo.objectives.stream import FAR, Stream
from ctpo.objectives.surrogates import MinClip, StopGradientWeight


class CompiledStream(Stream):
    """`Stream` with compiled loading and terms."""

    def fill(self, loss: Tensor, active: Tensor, slope: Tensor | None, kept: Tensor | None) -> Tensor:
        """See `Stream.fill`."""
        per_row = torch.zeros(self.rows, 1, dtype=self.wide, device=self.device)
        if loss.numel() == 0:
            return per_row
        load, terms = _loader(self.dtype), _terms(self.plan, self.ceiling)
        for top in range(0, self.rows, self.block_rows):
            r = slice(top, min(top + self.block_rows, self.rows))
            x, marked, keep, growth = load(self.logps[r], self.old[r], self.mask[r])
            lengths = self._row_sum(marked)
            self._count_tokens(r, marked, keep, lengths)
            self._add_divergences(x, growth)
            self._accumulate(r, x, marked, marked, lengths)
            if kept is not None:
                kept[r].copy_(keep)
            advantages = self._finite_advantages(r, slice(None), keep)
            value, met, x, weight, *slopes = terms(x, marked, keep, advantages, self.logps[r])
            loss[r].copy_(value)
            active[r].copy_(keep - met.abs())
            if slope is not None:
                slope[r].copy_(slopes[0])
            self._count_clipped(met, advantages)
            self._add_weights(x, weight, *self._extremes(x, keep))
            per_row[r] = self._row_sum(value).to(self.wide)
        return per_row

    def _count_tokens(self, r: slice, marked: Tensor, keep: Tensor, lengths: Tensor) -> None:
        sums, usable = self.sums, self._sum(keep)
        sums.tokens = sums.tokens + self._sum(lengths)
        sums.sequences = sums.sequences + self._read((lengths > 0).sum())
        sums.usable = sums.usable + usable
        if not self.on_cpu or usable != self._sum(marked):
            finite = self.logps[r].isfinite() & self.old[r].isfinite()
            sums.nonfinite = sums.nonfinite + self._read((self.mask[r] & ~finite).sum())
            sums.saturated = sums.saturated + self._read((self.mask[r] & finite & (keep == 0)).sum())


@lru_cache(maxsize=8)
def _loader(dtype: torch.dtype) -> Callable[..., tuple[Tensor, ...]]:
    def load(logps: Tensor, old: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        raw = logps.to(dtype) - old.to(dtype)
        usable = mask & (raw.abs() <= SATURATION)  # false for NaN and inf too
        d = torch.where(usable, raw, 0.0)
        return d, mask.to(dtype), usable.to(dtype), d.expm1()

    return torch.compile(load, dynamic=True)


@lru_cache(maxsize=64)
def _terms(plan: Plan, ceiling: float | None) -> Callable[..., tuple[Tensor, ...]]:
    bases, cap = plan.bases, plan.ratio.log_cap
    low, high = max(bases.lower, -FAR), min(bases.upper, FAR)
    dual = FAR if bases.dual is None else bases.dual
    widest = max((b for b in (bases.upper, bases.dual) if b is not None and b < FAR), default=0.0)
    by_sign = isinstance(plan.surrogate, MinClip)
    weighs = isinstance(plan.surrogate, StopGradientWeight)

    def terms(
        x: Tensor, position: Tensor, keep: Tensor, advantages: Tensor, logps: Tensor
    ) -> tuple[Tensor, ...]:
        x = x * keep
        scale = position.pow(bases.power) if plan.scaled else torch.ones_like(x)
        if by_sign:
            gain, harm = advantages > 0, advantages < 0
            far = torch.full_like(advantages, FAR)  # a where of two numbers would be float32
            lows = torch.where(harm, low, -far)
            highs = torch.where(gain, high, torch.where(harm, dual, far))
        else:
            lows = torch.full_like(advantages, low if weighs else -FAR)
            highs = torch.full_like(advantages, high if weighs else FAR)
        clipped = torch.minimum(torch.maximum(x, scale * lows), scale * highs)
        met = (clipped - x).sign()
        top = (scale * widest).clamp(cap, EXP_CAP) if ceiling is None else torch.full_like(x, ceiling)
        truncated = torch.minimum(x, top)
        weight = truncated.exp() * keep
        slope = -advantages * torch.minimum(clipped, top).exp() * keep
        if weighs:
            return torch.where(keep != 0, slope * logps.to(x.dtype), 0.0), met, truncated, weight, slope
        return slope, met, truncated, weight

    return torch.compile(terms, dynamic=True)
