"""The fast path: loss, statistics and gradient from one streaming pass.

With the stop-gradient decomposition d L_t / d log π_t needs token t only, and is L_t itself wherever the
token is not clipped. So on the CPU the forward pass also leaves the gradient of the loss, which the backward pass
hands over; the token losses and one bit a token are kept beside it for other upstream gradients and further
backward passes. A gradient "through" the statistic adds the statistic's transpose, a sum along the sequence.

On the CPU the pass goes piece by piece (`stream`) and reads 0-d results as Python floats, which costs nothing
there; padded rows and packed streams take it. On other devices padded rows do, as one piece of which nothing
is read (`device_stream`). Tests hold both equal to `compose` for every preset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctpo.objectives.compose import Output
from ctpo.objectives.device_stream import DeviceStream
from ctpo.objectives.layouts.padded import Layout, Padded
from ctpo.objectives.cpu.native import NativeStream
from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.plan import Plan
from ctpo.objectives.ratios import MinPrefixRatio
from ctpo.objectives.layouts.packed import Packed
from ctpo.objectives.stats import Sums, finalise
from ctpo.objectives.stream import BLOCK, Stream
from ctpo.objectives.surrogates import StopGradientWeight
from ctpo.objectives.tokens import Tokens


def reads_are_free(device: torch.device) -> bool:
    """Whether reading a value costs no synchronisation."""
    return device.type == "cpu"


def runs(plan: Plan, layout: Layout, device: torch.device, compiled: bool) -> bool:
    """Whether the fused path takes a layout on a device; torch has no minimum that begins anew in a stream."""
    if isinstance(layout, Padded):
        return True
    scans = compiled or not isinstance(plan.ratio, MinPrefixRatio)
    return isinstance(layout, Packed) and reads_are_free(device) and scans


def run(
    plan: Plan,
    logps: Tensor,
    old_logps: Tensor,
    mask: Tensor,
    advantages: Tensor,
    factor: Tensor,
    layout: Layout,
    compiled: bool,
) -> Output:
    """Output of a call, equal to `compose`.

    Args:
        plan: from `plan_for`.
        logps, old_logps: [B, T] or [N], any floating dtype.
        mask: the shape of logps, boolean.
        advantages: [B, 1], [B, T] or [N] in the compute dtype, with weights applied; anything outside the mask.
        factor: of the token losses, 0-d, [B, 1] or [N], in the compute dtype.
        layout: one that `runs` accepts.
        compiled: on the CPU, run the pass as compiled C.
    """
    sums = Sums()
    loss, token_loss = _Fused.apply(  # type: ignore[no-untyped-call]
        logps, old_logps, mask, advantages, factor, plan, sums, layout, compiled
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
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        token_loss = torch.empty(logps.shape, dtype=factor.dtype, device=logps.device)
        # A stop-gradient weight is the slope itself; elsewhere the slope is the loss of an active token.
        slope = torch.empty_like(token_loss) if isinstance(plan.surrogate, StopGradientWeight) else None
        flags = torch.empty(logps.shape, dtype=torch.bool, device=logps.device)
        active = flags if slope is None else None
        kept = torch.empty_like(flags) if plan.through else None
        free = reads_are_free(logps.device)
        grad = torch.empty_like(token_loss) if free and ctx.needs_input_grad[0] else None
        rows = (_rows(logps), _rows(old_logps), _rows(mask), _rows(advantages), _rows(factor))
        outputs = [_rows(x) for x in (token_loss, active, slope, kept, grad)]
        loss: float | Tensor = 0.0
        if token_loss.numel() > 0:
            if free:
                starts = layout.starts.tolist() if isinstance(layout, Packed) else None
                stream = (NativeStream if compiled else Stream)(plan, *rows, sums, starts)
                loss = stream.fill(*outputs)
            else:
                loss = DeviceStream(plan, *rows, sums).fill(*outputs[:4])
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.layout, ctx.input_dtype = plan, layout, logps.dtype
        ctx.grad = grad
        ctx.save_for_backward(token_loss if slope is None else slope, active, factor, kept, mask)
        if not isinstance(loss, Tensor):
            loss = torch.full((), loss, dtype=factor.dtype, device=logps.device)
        return loss.to(factor.dtype), token_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor | None, grad_token: Tensor | None) -> tuple[Tensor | None, ...]:
        slope, active, factor, kept, mask = ctx.saved_tensors
        if grad_loss is None and grad_token is None:
            return (None,) * 9
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
                _keep_active(grad, active)
        if kept is not None:
            tokens = Tokens(grad, grad, mask, kept, mask, mask, ctx.layout)
            pulled = ctx.plan.ratio.pullback(tokens, grad.to(prefix_dtype(grad.device)))
            grad = torch.where(kept, pulled.to(grad.dtype), torch.zeros_like(grad))
        return (grad.to(ctx.input_dtype), *(None,) * 8)


def _keep_active(grad: Tensor, active: Tensor) -> None:
    """Zero the gradients of clipped tokens; they are finite, so a product may."""
    bits = active.view(torch.uint8)
    if not reads_are_free(grad.device):
        grad.mul_(bits)
        return
    # A product of mixed dtypes would first copy all the bits to floats.
    parts: list[list[Tensor]] = [list(x.reshape(-1).split(BLOCK)) for x in (grad, bits)]  # type: ignore[no-untyped-call]
    for part, some in zip(*parts, strict=True):
        part.mul_(some.to(part.dtype))
