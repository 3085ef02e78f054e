"""The fast path: loss, statistics and gradient from one streaming pass.

With the stop-gradient decomposition d L_t / d log π_t needs token t only, and is L_t itself wherever the
token is not clipped. So the forward pass also leaves the gradient of the loss, which the backward pass hands
over; the token losses and one bit per token are kept beside it for other upstream gradients. A gradient
"through" the statistic adds the statistic's transpose. Tests hold it equal to `compose` for every preset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctpo.objectives.compose import Output
from ctpo.objectives.cpu.native import NativePass
from ctpo.objectives.cpu.plan import Plan, plan_for
from ctpo.objectives.cpu.supported import takes_native
from ctpo.objectives.inputs import Inputs
from ctpo.objectives.layouts.packed import Packed
from ctpo.objectives.layouts.padded import Layout
from ctpo.objectives.numerics import compute_dtype, prefix_dtype
from ctpo.objectives.ratios import Ratio
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.stats import Sums, finalise
from ctpo.objectives.surrogates import StopGradientWeight, Surrogate
from ctpo.objectives.tokens import Tokens, as_bool
from ctpo.objectives.trust_regions import TrustRegion


def native_output(
    ratio: Ratio,
    region: TrustRegion,
    surrogate: Surrogate,
    reduction: Reduction,
    inputs: Inputs,
    backend: str,
    layout_of: Callable[[Inputs, None], Layout],
) -> Output | None:
    """The output of a call by the C pass, or None where the definition has to run."""
    plan = plan_for(ratio, region, surrogate)
    if plan is None or not takes_native(backend, *inputs.tensors()):
        return None
    layout = layout_of(inputs, None)
    mask = as_bool(inputs.response_mask)
    counted = mask if inputs.rejection_mask is None else mask & ~as_bool(inputs.rejection_mask)
    dtype = compute_dtype(inputs.logps, inputs.old_logps)
    factor = reduction.factors(counted, layout, inputs.num_tokens, inputs.num_sequences, dtype)
    signal = layout.expand(inputs.advantages.detach()).to(dtype)
    if inputs.weights is not None:
        signal = signal * layout.expand(inputs.weights.detach()).to(dtype)
    if inputs.rejection_mask is not None:
        signal = torch.where(counted, signal, torch.zeros_like(signal))
    return run(plan, inputs.logps, inputs.old_logps, mask, signal, factor, layout)


def run(
    plan: Plan,
    logps: Tensor,
    old_logps: Tensor,
    mask: Tensor,
    advantages: Tensor,
    factor: Tensor,
    layout: Layout,
) -> Output:
    """Output of a call, equal to `compose`.

    Args:
        plan: from `plan_for`.
        logps, old_logps: [B, T] or [N], any floating dtype.
        mask: the shape of logps, boolean.
        advantages: [B, 1], [B, T] or [N] in the compute dtype, with weights applied; anything outside the mask.
        factor: of the token losses, 0-d, [B, 1] or [N], in the compute dtype.
        layout: padded rows or a packed stream.
    """
    sums = Sums()
    loss, token_loss = _Fused.apply(  # type: ignore[no-untyped-call]
        logps, old_logps, mask, advantages, factor, plan, sums, layout
    )
    if isinstance(layout, Packed):
        sums.sequences = float(layout.count_sequences(mask))  # on the CPU, where alone streams are fused
    return Output(loss, token_loss, finalise(sums, factor.dtype, logps.device))


def _rows(x: Tensor | None) -> Any:
    """A packed stream as one row."""
    return x.unsqueeze(0) if x is not None and x.ndim == 1 else x


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
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        token_loss = torch.empty(logps.shape, dtype=factor.dtype, device=logps.device)
        # A stop-gradient weight is the slope itself; elsewhere the slope is the loss of an active token.
        slope = torch.empty_like(token_loss) if isinstance(plan.surrogate, StopGradientWeight) else None
        flags = torch.empty(logps.shape, dtype=torch.bool, device=logps.device)
        active = flags if slope is None else None
        kept = torch.empty_like(flags) if plan.through else None
        grad = torch.empty_like(token_loss) if ctx.needs_input_grad[0] else None
        rows = (_rows(logps), _rows(old_logps), _rows(mask), _rows(advantages), _rows(factor))
        outputs = [_rows(x) for x in (token_loss, active, slope, kept, grad)]
        loss = 0.0
        if token_loss.numel() > 0:
            starts = layout.starts.tolist() if isinstance(layout, Packed) else None
            loss = NativePass(plan, *rows, sums, starts).fill(*outputs)
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.layout, ctx.input_dtype = plan, layout, logps.dtype
        ctx.grad = grad
        ctx.save_for_backward(token_loss if slope is None else slope, active, factor, kept, mask)
        return torch.full((), loss, dtype=factor.dtype), token_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor | None, grad_token: Tensor | None) -> tuple[Tensor | None, ...]:
        slope, active, factor, kept, mask = ctx.saved_tensors
        if grad_loss is None and grad_token is None:
            return (None,) * 8
        if grad_token is None and ctx.grad is not None:
            # The forward pass left the gradient of the loss; it is handed over, so a second backward pass
            # over a retained graph makes its own.
            grad, ctx.grad = ctx.grad, None
            assert grad_loss is not None
            if float(grad_loss) != 1.0:
                grad.mul_(grad_loss)
        else:
            scale = torch.zeros_like(factor) if grad_loss is None else factor * grad_loss
            grad = torch.mul(slope, scale if grad_token is None else scale + grad_token)
            if active is not None:
                grad.mul_(active)
        if kept is not None:
            tokens = Tokens(grad, grad, mask, kept, mask, mask, ctx.layout)
            pulled = ctx.plan.ratio.pullback(tokens, grad.to(prefix_dtype(grad.device)))
            grad = torch.where(kept, pulled.to(grad.dtype), torch.zeros_like(grad))
        return (grad.to(ctx.input_dtype), *(None,) * 7)
