"""The fast path: loss, statistics and gradient of padded rows from one streaming pass, in place.

With the stop-gradient decomposition d L_t / d log π_t needs token t only, and is L_t itself wherever the
token is not clipped. So the forward pass keeps the token losses and one bit a token, and the backward pass is
a product. A gradient "through" the statistic adds the statistic's transpose, a sum along the row.

On the CPU, rows are taken in blocks, and 0-d results are read as Python floats, which costs nothing there. On
other devices there is one block and nothing is read. Tests hold it equal to `compose` for every preset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctpo.objectives.compiled import CompiledStream
from ctpo.objectives.compose import Output
from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.plan import Plan
from ctpo.objectives.ratios import (
    CumulativeRatio,
    PrefixMeanRatio,
    Ratio,
    SequenceMeanRatio,
)
from ctpo.objectives.stats import Sums, finalise
from ctpo.objectives.stream import Stream
from ctpo.objectives.surrogates import StopGradientWeight


def run(
    plan: Plan,
    logps: Tensor,
    old_logps: Tensor,
    mask: Tensor,
    advantages: Tensor,
    factor: Tensor,
    compiled: bool = False,
) -> Output:
    """Output of a padded call, equal to `compose`.

    Args:
        plan: from `plan_for`.
        logps, old_logps: [B, T], any floating dtype.
        mask: [B, T] boolean.
        advantages: [B, 1] or [B, T] in the compute dtype, with weights applied; anything outside the mask.
        factor: of the token losses, 0-d or [B, 1], in the compute dtype.
        compiled: generate the block arithmetic with torch.compile.
    """
    sums = Sums()
    loss, token_loss = _Fused.apply(  # type: ignore[no-untyped-call]
        logps, old_logps, mask, advantages, factor, plan, sums, compiled
    )
    return Output(loss, token_loss, finalise(sums, factor.dtype, logps.device))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logps: Tensor,
        old_logps: Tensor,
        mask: Tensor,
        advantages: Tensor,
        factor: Tensor,
        plan: Plan,
        sums: Sums,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        token_loss = torch.empty(logps.shape, dtype=factor.dtype, device=logps.device)
        active = torch.empty(logps.shape, dtype=torch.bool, device=logps.device)
        # A stop-gradient weight is the slope itself; elsewhere the slope is the loss of an active token.
        slope = torch.empty_like(token_loss) if isinstance(plan.surrogate, StopGradientWeight) else None
        kept = torch.empty_like(active) if plan.through else None
        stream = (CompiledStream if compiled else Stream)(plan, logps, old_logps, mask, advantages, sums)
        per_row = stream.fill(token_loss, active, slope, kept)
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.input_dtype = plan, logps.dtype
        ctx.save_for_backward(token_loss if slope is None else slope, active, factor, kept, mask)
        return (per_row * factor).sum().to(factor.dtype), token_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor | None, grad_token: Tensor | None) -> tuple[Tensor | None, ...]:
        slope, active, factor, kept, mask = ctx.saved_tensors
        if grad_loss is None and grad_token is None:
            return (None,) * 8
        scale = torch.zeros_like(factor) if grad_loss is None else factor * grad_loss
        grad = torch.mul(slope, scale if grad_token is None else scale + grad_token)
        if not isinstance(ctx.plan.surrogate, StopGradientWeight):
            grad.mul_(active.view(torch.uint8))  # finite, so a product may drop the clipped tokens
        if kept is not None:
            grad = _pull_back(ctx.plan.ratio, grad, kept, mask)
        return (grad.to(ctx.input_dtype), *(None,) * 7)


def _pull_back(ratio: Ratio, slopes: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    """Transpose of the statistic: slopes of log weights to slopes of log-probs."""
    wide = slopes.to(prefix_dtype(slopes.device))
    if isinstance(ratio, PrefixMeanRatio):
        wide = wide / mask.cumsum(-1).clamp(min=1)
    if isinstance(ratio, (CumulativeRatio, PrefixMeanRatio)):
        wide = wide.flip(-1).cumsum(-1).flip(-1)
    else:
        wide = wide.sum(-1, keepdim=True)
        if isinstance(ratio, SequenceMeanRatio):
            wide = wide / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(kept, wide.to(slopes.dtype), torch.zeros_like(slopes))
