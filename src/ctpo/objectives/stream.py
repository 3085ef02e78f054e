"""The streaming pass of the fused path: blocks of rows through reused buffers, every operation in place.

The output of the token losses first holds the scale of the bounds. Operations and dtypes follow `compose`
step by step, so decisions fall the same way.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

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
from ctpo.objectives.stats import Number, Sums
from ctpo.objectives.surrogates import MinClip, StopGradientWeight

BLOCK: Final = 1 << 18
"""Tokens a CPU block: enough to amortise some sixty calls, few enough for the buffers to stay in cache."""

FAR: Final = 1e30
"""Stands for an absent bound: an infinite one would make 0·inf = NaN at t = 0."""


def reads_are_free(device: torch.device) -> bool:
    """Whether reading a value costs no synchronisation."""
    return device.type == "cpu"


class Stream:
    """One forward pass. `fill` writes the outputs and adds to `sums`.

    Values are made finite first (by `torch.where` wherever a block holds anything unusable); only then may a
    product with the 0/1 `keep` drop tokens, which costs a fifth of a `where`.
    """

    def __init__(
        self, plan: Plan, logps: Tensor, old_logps: Tensor, mask: Tensor, advantages: Tensor, sums: Sums
    ) -> None:
        self.plan, self.sums = plan, sums
        self.logps, self.old, self.mask, self.advantages = logps, old_logps, mask, advantages
        self.rows, self.length = logps.shape
        self.dtype, self.device = advantages.dtype, logps.device
        self.on_cpu = reads_are_free(self.device)
        self.wide = prefix_dtype(self.device)
        self.zero = torch.zeros((), dtype=self.dtype, device=self.device)
        self.ceiling = plan.ceiling(self.length)
        self.least_ceiling = plan.ratio.log_cap if self.ceiling is None else self.ceiling
        self.block_rows = max(1, min(self.rows, BLOCK // max(self.length, 1) if self.on_cpu else self.rows))
        # Only single rows are cut across: pieces of several rows would not be contiguous.
        cut = self.on_cpu and self.block_rows == 1
        self.block_columns = min(self.length, max(BLOCK // 4, 1)) if cut else self.length

    def fill(self, loss: Tensor, active: Tensor, slope: Tensor | None, kept: Tensor | None) -> Tensor:
        """Token losses, activity bits, slopes and usable tokens, as far as asked for.

        Returns:
            [B, 1] row sums of the loss.
        """
        per_row = torch.zeros(self.rows, 1, dtype=self.wide, device=self.device)
        if loss.numel() == 0:
            return per_row
        shape = (self.block_rows, self.length)
        x_buffer, mask_buffer = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        shape = (self.block_rows, self.block_columns)
        a, b = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        for top in range(0, self.rows, self.block_rows):
            r = slice(top, min(top + self.block_rows, self.rows))
            n = r.stop - r.start
            keep, lengths = self._load(r, x_buffer[:n], loss[r], mask_buffer[:n])
            self._accumulate(r, x_buffer[:n], loss[r], mask_buffer[:n], lengths)
            if kept is not None:
                kept[r].copy_(keep)
            for left in range(0, self.length, self.block_columns):
                c = slice(left, min(left + self.block_columns, self.length))
                out = (loss[r, c], active[r, c], None if slope is None else slope[r, c])
                width = c.stop - c.start
                self._terms(r, c, x_buffer[:n, c], keep[:, c], *out, a[:n, :width], b[:n, :width])
                per_row[r] += self._row_sum(loss[r, c])
        return per_row

    def _sum(self, x: Tensor) -> Number:
        """Sum of a block; in float32 on the CPU, where blocks are small and a cast would copy them."""
        return float(x.sum()) if self.on_cpu else x.sum(dtype=self.wide)

    def _row_sum(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True) if self.on_cpu else x.sum(-1, keepdim=True, dtype=self.wide)

    def _read(self, value: Tensor) -> Number:
        return float(value) if self.on_cpu else value.to(self.wide)

    def _load(self, r: slice, x: Tensor, scale: Tensor, marked: Tensor) -> tuple[Tensor, Tensor]:
        """Token log ratios into `x` and the mask as 0/1 into `marked`.

        Returns:
            Usable tokens as 0/1 of the compute dtype (`marked` where all under the mask are usable), and the
            number of tokens under the mask in each row.
        """
        sums = self.sums
        marked.copy_(self.mask[r].view(torch.uint8))
        lengths = self._row_sum(marked)
        sums.tokens = sums.tokens + self._read(lengths.sum())
        sums.sequences = sums.sequences + self._read((lengths > 0).sum())
        torch.sub(self.logps[r].to(self.dtype), self.old[r].to(self.dtype), out=x)
        keep = self._drop(r, x, marked)
        self._add_divergences(x, torch.exp(x, out=scale).sub_(1))
        return keep, lengths

    def _accumulate(self, r: slice, x: Tensor, scale: Tensor, marked: Tensor, lengths: Tensor) -> None:
        """Token log ratios to the ratio's statistic, in place; positions into `scale` where they matter."""
        ratio = self.plan.ratio
        if self.plan.scaled or isinstance(ratio, PrefixMeanRatio):
            self._cumulate(marked, scale)
        if isinstance(ratio, (CumulativeRatio, PrefixMeanRatio)):
            self._cumulate(x, x)
        if isinstance(ratio, PrefixMeanRatio):
            x.div_(scale.clamp_(min=1))
        elif isinstance(ratio, SequenceRatio):
            x.copy_(x.sum(-1, keepdim=True, dtype=self.wide))
        elif isinstance(ratio, SequenceMeanRatio):
            x.copy_(x.sum(-1, keepdim=True, dtype=self.wide) / lengths.clamp(min=1))
        elif isinstance(ratio, MinPrefixRatio):
            self._add_smallest_before(x, self.mask[r])
        elif isinstance(ratio, UnitRatio):
            x.zero_()

    def _drop(self, r: slice, x: Tensor, marked: Tensor) -> Tensor:
        """Zero the token log ratios that do not count, and count the unusable ones."""
        sums = self.sums
        if self.on_cpu:
            low, high = torch.aminmax(x)
            if float(low) >= -SATURATION and float(high) <= SATURATION:  # false for NaN
                x.mul_(marked)
                sums.usable = sums.usable + self._sum(marked)
                return marked
        mask = self.mask[r]
        usable = mask & (x.abs() <= SATURATION)
        finite = self.logps[r].isfinite() & self.old[r].isfinite()
        sums.usable = sums.usable + self._read(usable.sum())
        sums.nonfinite = sums.nonfinite + self._read((mask & ~finite).sum())
        sums.saturated = sums.saturated + self._read((mask & finite & ~usable).sum())
        torch.where(usable, x, self.zero, out=x)
        return usable.to(self.dtype)

    def _cumulate(self, x: Tensor, out: Tensor) -> None:
        """Prefix sum in double precision, which torch's float32 CPU kernel accumulates in by itself."""
        if self.on_cpu:
            torch.cumsum(x, -1, out=out)
        else:
            out.copy_(x.cumsum(-1, dtype=self.wide))

    def _add_smallest_before(self, x: Tensor, mask: Tensor) -> None:
        smallest = torch.where(mask, x, self.zero + torch.inf).cummin(-1).values[:, :-1]
        x[:, 1:] += torch.where(smallest.isinf(), self.zero, smallest)

    def _add_divergences(self, d: Tensor, growth: Tensor) -> None:
        """Add Σd, Σd² and Σ(e^d − 1 − d), the last to 1e-7 a token in float32: far below any KL of note.

        `growth` is e^d − 1.
        """
        sums, flat, linear = self.sums, d.reshape(-1), self._sum(d)
        sums.d = sums.d + linear
        sums.dd = sums.dd + self._read(flat.dot(flat))
        sums.k3 = sums.k3 + (self._sum(growth) - linear)

    def _terms(
        self, r: slice, c: slice, x: Tensor, keep: Tensor, loss: Tensor, active: Tensor, slope: Tensor | None,
        clipped: Tensor, spare: Tensor,
    ) -> None:  # fmt: skip
        """Token losses of one block; `loss` enters as the positions of its tokens."""
        # 0 lies within every trust region: a token that does not count can meet no bound.
        x.mul_(keep)
        if self.plan.scaled:
            torch.pow(loss, self.plan.bases.power, out=loss)
        advantages = self._finite_advantages(r, c, keep)
        self._clip(x, loss, advantages, clipped, spare)
        self._mark_clipped(x, advantages, clipped, keep, active, spare)
        lowest, highest = self._extremes(x, keep)
        if not self.on_cpu or highest > self.least_ceiling:
            ceiling = self._ceiling_at(loss) if self.ceiling is None else self.ceiling
            torch.clamp(clipped, max=ceiling, out=clipped)
            x.clamp_(max=ceiling)
            lowest, highest = self._extremes(x, keep)
        self._add_weights(x, torch.exp(x, out=spare).mul_(keep), lowest, highest)
        clipped.exp_().mul_(-advantages)
        if slope is None:
            torch.mul(clipped, keep, out=loss)
        else:
            torch.mul(clipped, keep, out=slope)
            logps = self.logps[r, c].to(self.dtype)
            torch.where(keep != 0, slope * logps, self.zero, out=loss)

    def _finite_advantages(self, r: slice, c: slice, keep: Tensor) -> Tensor:
        """Advantages of a block, 0 where none of their tokens counts: there they may be NaN."""
        if self.advantages.shape[-1] == 1:
            return torch.where(self._row_sum(keep) > 0, self.advantages[r], self.zero)
        return torch.where(keep != 0, self.advantages[r, c], self.zero)

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

    def _mark_clipped(
        self, x: Tensor, advantages: Tensor, clipped: Tensor, keep: Tensor, active: Tensor, spare: Tensor
    ) -> None:
        """Write which usable tokens met no bound, and count the others by the bound they met."""
        torch.sub(clipped, x, out=spare).sign_()
        self._count_clipped(spare, advantages)
        active.copy_(torch.sub(keep, spare, out=spare))

    def _count_clipped(self, spare: Tensor, advantages: Tensor) -> None:
        """Count signs: +1 raised to the lower bound, −1 lowered to upper or dual. Leaves their moduli."""
        sums, balance = self.sums, self._sum(spare)
        spare.abs_()
        if isinstance(self.plan.surrogate, MinClip) and self.plan.bases.dual is not None:
            rows = spare if advantages.shape[-1] > 1 else self._row_sum(spare)
            total, high = self._sum(rows), self._sum(rows * (advantages > 0))
            low = (total + balance) / 2
            sums.dual = sums.dual + (total - low - high)
        else:
            total = self._sum(spare)
            low, high = (total + balance) / 2, (total - balance) / 2
        sums.low, sums.high = sums.low + low, sums.high + high

    def _ceiling_at(self, scale: Tensor) -> Tensor:
        bounds = (self.plan.bases.upper, self.plan.bases.dual)
        widest = max(b for b in bounds if b is not None and not math.isinf(b))
        return scale.mul(widest).clamp_(min=self.plan.ratio.log_cap, max=EXP_CAP)

    def _extremes(self, x: Tensor, keep: Tensor) -> tuple[Number, Number]:
        """Least and greatest statistic of the usable tokens; ±inf when there is none."""
        if self.on_cpu:
            low, high = (float(v) for v in torch.aminmax(x))
            if low < 0 < high:  # then the zeros of the other tokens are not the extremes
                return low, high
        inf, usable = self.zero + torch.inf, keep != 0
        lowest, highest = torch.where(usable, x, inf).amin(), torch.where(usable, x, -inf).amax()
        return self._read(lowest), self._read(highest)

    def _add_weights(self, x: Tensor, weight: Tensor, lowest: Number, highest: Number) -> None:
        """Add the sums of the truncated log weights, and of the weights, over the usable tokens."""
        sums, flat = self.sums, x.reshape(-1)
        sums.x, sums.xx = sums.x + self._sum(flat), sums.xx + self._read(flat.dot(flat))
        if self.on_cpu:
            sums.lowest = min(float(sums.lowest), float(lowest))
            sums.highest = max(float(sums.highest), float(highest))
        else:
            sums.lowest, sums.highest = lowest, highest
        rho = weight.reshape(-1)
        if not self.on_cpu or 2 * float(highest) > EXP_CAP:
            rho = rho.to(self.wide)  # the square would overflow float32
        sums.weight = sums.weight + self._read(rho.sum())
        sums.weight_squared = sums.weight_squared + self._read(rho.dot(rho))
