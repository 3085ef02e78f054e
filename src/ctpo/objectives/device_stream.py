"""The streaming pass on other devices than the CPU: padded rows as one piece, of which no value is read.

Masking takes a product where values are finite, `torch.where` elsewhere. Decisions are `compose`'s.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctpo.objectives.clipping import FAR
from ctpo.objectives.numerics import EXP_CAP, SATURATION, prefix_dtype
from ctpo.objectives.plan import Plan
from ctpo.objectives.ratios import (
    CumulativeRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    SequenceMeanRatio,
    SequenceRatio,
    UnitRatio,
)
from ctpo.objectives.stats import Sums
from ctpo.objectives.surrogates import MinClip, StopGradientWeight


class DeviceStream:
    """One forward pass over padded rows; see `stream.Stream`, whose arguments and outputs these are."""

    def __init__(
        self, plan: Plan, logps: Tensor, old_logps: Tensor, mask: Tensor, advantages: Tensor, factor: Tensor,
        sums: Sums,
    ) -> None:  # fmt: skip
        self.plan, self.sums, self.factor = plan, sums, factor
        self.logps, self.old, self.mask, self.advantages = logps, old_logps, mask, advantages
        self.dtype, self.device = advantages.dtype, logps.device
        self.wide = prefix_dtype(self.device)
        self.zero = torch.zeros((), dtype=self.dtype, device=self.device)
        self.ceiling = plan.ceiling(logps.shape[-1])

    def fill(self, loss: Tensor, active: Tensor | None, slope: Tensor | None, kept: Tensor | None) -> Tensor:
        """See `stream.Stream.fill`."""
        x, marked, a, b = torch.empty((4, *loss.shape), dtype=self.dtype, device=self.device)
        keep, lengths = self._load(x, marked, a)
        self._accumulate(x, marked, lengths, loss)
        if kept is not None:
            kept.copy_(keep)
        self._terms(x, keep, loss, active, slope, a, b)
        return (loss.sum(-1, keepdim=True, dtype=self.wide) * self.factor).sum()

    def _sum(self, x: Tensor) -> Tensor:
        return x.sum(dtype=self.wide)

    def _square(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        return flat.dot(flat).to(self.wide)

    def _load(self, x: Tensor, marked: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
        """Token log ratios into `x`, 0 where not usable, and the mask as 0/1 into `marked`.

        Returns:
            Usable tokens as 0/1, and each row's count of tokens under the mask.
        """
        sums, mask = self.sums, self.mask
        lengths = marked.copy_(mask).sum(-1, keepdim=True, dtype=self.wide)
        torch.sub(self.logps.to(self.dtype), self.old.to(self.dtype), out=x)
        usable = mask & (x.abs() <= SATURATION)  # false for NaN and inf too
        finite = self.logps.isfinite() & self.old.isfinite()
        torch.where(usable, x, self.zero, out=x)
        sums.tokens, sums.sequences, sums.usable = lengths.sum(), (lengths > 0).sum(), usable.sum()
        sums.nonfinite = (mask & ~finite).sum()
        sums.saturated = (mask & finite & ~usable).sum()
        sums.d, sums.dd = self._sum(x), self._square(x)
        sums.k3 = self._sum(torch.expm1(x, out=spare)) - sums.d
        return usable.to(self.dtype), lengths

    def _accumulate(self, x: Tensor, marked: Tensor, lengths: Tensor, scale: Tensor) -> None:
        """Token log ratios to the ratio's statistic, in place; powers of positions into `scale` if they matter."""
        ratio, power = self.plan.ratio, self.plan.bases.power
        positions = isinstance(ratio, PrefixMeanRatio)
        if self.plan.scaled or positions:
            scale.copy_(marked.cumsum(-1, dtype=self.wide))
            if positions or power < 0:
                scale.clamp_(min=1)
        if isinstance(ratio, (CumulativeRatio, PrefixMeanRatio)):
            x.copy_(x.cumsum(-1, dtype=self.wide))
        if positions:
            x.div_(scale)
        elif isinstance(ratio, SequenceRatio):
            x.copy_(x.sum(-1, keepdim=True, dtype=self.wide))
        elif isinstance(ratio, SequenceMeanRatio):
            x.copy_(x.sum(-1, keepdim=True, dtype=self.wide) / lengths.clamp(min=1))
        elif isinstance(ratio, MinPrefixRatio):
            smallest = torch.where(self.mask, x, self.zero + torch.inf).cummin(-1).values[:, :-1]
            x[:, 1:] += torch.where(smallest.isinf(), self.zero, smallest)
        elif isinstance(ratio, UnitRatio):
            x.zero_()
        if self.plan.scaled:
            torch.pow(scale, power, out=scale)

    def _terms(
        self, x: Tensor, keep: Tensor, loss: Tensor, active: Tensor | None, slope: Tensor | None,
        clipped: Tensor, spare: Tensor,
    ) -> None:  # fmt: skip
        """Token losses; `loss` enters as the scale of the bounds."""
        x.mul_(keep)  # 0 lies within every trust region
        counts = keep.sum(-1, keepdim=True) if self.advantages.shape[-1] == 1 else keep
        advantages = torch.where(counts > 0, self.advantages, self.zero)
        self._clip(x, loss, advantages, clipped, spare)
        self._count_clipped(torch.sub(x, clipped, out=spare).sign_(), advantages)
        if active is not None:
            torch.eq(spare, 0, out=active)
        ceiling = self._ceiling_at(loss) if self.ceiling is None else self.ceiling
        torch.clamp(clipped, max=ceiling, out=clipped)
        self._add_weights(x.clamp_(max=ceiling), keep)
        clipped.exp_().mul_(-advantages)
        if slope is None:
            torch.mul(clipped, keep, out=loss)
        else:
            torch.mul(clipped, keep, out=slope)
            torch.where(keep != 0, slope * self.logps.to(self.dtype), self.zero, out=loss)

    def _clip(self, x: Tensor, scale: Tensor, advantages: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Log weights clamped to the bounds that bind for the sign of the advantage, into `lower`."""
        bases, far = self.plan.bases, self.zero + FAR
        low, high = self.zero + max(bases.lower, -FAR), self.zero + min(bases.upper, FAR)
        if isinstance(self.plan.surrogate, MinClip):
            gain, harm = advantages > 0, advantages < 0
            dual = far if bases.dual is None else self.zero + bases.dual
            low, high = torch.where(harm, low, -far), torch.where(gain, high, torch.where(harm, dual, far))
        elif not isinstance(self.plan.surrogate, StopGradientWeight):
            low, high = -far, far
        if self.plan.scaled:
            torch.mul(scale, low, out=lower)
            torch.mul(scale, high, out=upper)
        else:
            lower.copy_(low)
            upper.copy_(high)
        torch.clamp(x, lower, upper, out=lower)

    def _count_clipped(self, moved: Tensor, advantages: Tensor) -> None:
        """Count signs: +1 lowered to the upper or dual bound, −1 raised to the lower."""
        sums, down = self.sums, moved > 0
        if isinstance(self.plan.surrogate, MinClip):
            sums.high, sums.dual = (down & (advantages > 0)).sum(), (down & (advantages < 0)).sum()
        else:
            sums.high = down.sum()
        sums.low = (moved < 0).sum()

    def _ceiling_at(self, scale: Tensor) -> Tensor:
        bounds = (self.plan.bases.upper, self.plan.bases.dual)
        widest = max(b for b in bounds if b is not None and not math.isinf(b))
        return scale.mul(widest).clamp_(min=self.plan.ratio.log_cap, max=EXP_CAP)

    def _add_weights(self, x: Tensor, keep: Tensor) -> None:
        """Add the sums and extremes of the truncated log weights, and of the weights, over the usable tokens."""
        sums, inf, usable = self.sums, self.zero + torch.inf, keep != 0
        sums.x, sums.xx = self._sum(x), self._square(x)
        sums.lowest, sums.highest = torch.where(usable, x, inf).amin(), torch.where(usable, x, -inf).amax()
        weight = torch.exp(x).mul_(keep).to(self.wide)  # the square would overflow float32
        sums.weight, sums.weight_squared = self._sum(weight), self._square(weight)
