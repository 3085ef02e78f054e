"""Attention over few keys by whole matrix products, for a CPU that computes in bfloat16.

PyTorch's CPU kernel works in tiles that suit thousands of keys. With the few hundred keys of a prompt and its
completion, its backward pass took four times as long as the products need (docs/explanation/step.md). Scores, softmax
and its gradient are in float32, as in the kernel. Probabilities and gradients enter the products in bfloat16, where the
kernel's backward pass has float32 in one more place. On random inputs, results and gradients are at most 1.5 times as
far from the exact ones as the kernel's are, and a test keeps them below 2 times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MOST_KEYS = 512
"""The number of keys up to which the probabilities, which the backward pass needs, take less memory than the layer's
other activations."""


def prefers_whole_attention(query: Tensor, key: Tensor) -> bool:
    """Whether whole products are the faster way: few keys, on a CPU, in bfloat16.

    Args:
        query: [n, heads, Q, width].
        key: [n, key heads, K, width].
    """
    return key.shape[2] <= _MOST_KEYS and _in_bfloat16(query)


def whole_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """softmax(scale · QKᵀ) V over the keys that each query sees, [n, heads, Q, width] in bfloat16.

    Args:
        query: [n, heads, Q, width].
        key, value: [n, heads, K, width].
        seen: [n or 1, 1, Q, K], true where a query may see a key; every query must see at least one.
        scale: the factor of the scores.
    """
    apply: Callable[..., Tensor] = _WholeAttention.apply
    with torch.autocast("cpu", enabled=False):
        return apply(query, key, value, seen, scale)


def _in_bfloat16(query: Tensor) -> bool:
    if query.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else query.dtype) == torch.bfloat16


class _WholeAttention(torch.autograd.Function):
    """Forward, with Q already scaled: S = QKᵀ, E = exp(S − max S), O = EV / Σ E.

    Backward, with G = dO / Σ E: dV = EᵀG, dS = E ∘ (GVᵀ − rowsum(G ∘ O)), dQ = dS K, dK = dSᵀ Q.

    E is rounded to bfloat16 and not the softmax. So the weight of a key that has nearly all of it stays exact.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
        query, value = query.float() * scale, value.bfloat16()
        # Adding −inf to the scores is faster than filling them.
        unseen = torch.zeros(seen.shape, device=query.device).masked_fill_(~seen, -torch.inf)
        scores = torch.matmul(query, key.float().transpose(2, 3)).add_(unseen)
        powers = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
        shrink = powers.sum(dim=-1, keepdim=True).reciprocal_()
        powers = powers.bfloat16()
        out = torch.matmul(powers, value).float().mul_(shrink).bfloat16()
        ctx.save_for_backward(query.bfloat16(), key.bfloat16(), value, powers, shrink, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, powers, shrink, out = ctx.saved_tensors
        grad = grads[0].float() * shrink
        inward = torch.linalg.vecdot(grad, out.float())[..., None]
        grad = grad.bfloat16()
        d_value = torch.matmul(powers.transpose(2, 3), grad)
        d_scores = torch.matmul(grad, value.transpose(2, 3)).float().sub_(inward).mul_(powers).bfloat16()
        d_query, d_key = torch.matmul(d_scores, key), torch.matmul(d_scores.transpose(2, 3), query)
        return d_query.float().mul_(ctx.scale), d_key, d_value, None, None
