"""Attention of padded sequences on short ranges of keys, by whole products, where a CPU computes in bfloat16.

torch's CPU kernel works in tiles made for thousands of keys; on the few hundred of a prompt and its completion its
backward pass took four times what the products need (docs/step.md). Scores, softmax and its gradient are in float32,
as in the kernel; probabilities and gradients enter products in bfloat16, where the kernel's backward pass has them
once more in float32. Measured on random inputs, results and gradients are up to 1.5 times as far from exact ones as its
are (a test holds them below 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_LONGEST = 512
"""Keys up to which the probabilities, kept for the backward pass, are fewer than a layer's other activations."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    whole: bool = True,
) -> Tensor:
    """softmax(scale · QKᵀ) V over the keys seen; query heads may share key heads.

    Args:
        query: [n, heads, L, width].
        key, value: [n, key heads, W, width].
        mask: [n or 1, 1, L, W] true where seen, at least one key a query; None for causal, L = W.
        scale: of the scores; None for 1/√width.
        dropout: of the probabilities.
        whole: whether whole products may be used.

    Returns:
        [n, heads, L, width].
    """
    n, heads, length, width = query.shape
    whole = whole and dropout == 0.0 and key.shape[2] <= _LONGEST and _in_bfloat16(query)
    if mask is None and not whole:
        return scaled_dot_product_attention(
            *(query, key, value),
            is_causal=True,
            enable_gqa=heads != key.shape[1],
            dropout_p=dropout,
            scale=scale,
        )
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()[None, None]
    # Query heads that share a key head become more queries of it, so that no key is copied.
    queries = query.reshape(n, key.shape[1], -1, width)
    seen = mask.repeat(1, 1, heads // key.shape[1], 1)
    if whole:
        apply: Callable[..., Tensor] = _WholeAttention.apply
        with torch.autocast("cpu", enabled=False):
            out = apply(queries, key, value, seen, width**-0.5 if scale is None else scale)
    else:
        out = scaled_dot_product_attention(
            queries, key, value, attn_mask=seen, dropout_p=dropout, scale=scale
        )
    return out.reshape(n, heads, length, -1)


def _in_bfloat16(query: Tensor) -> bool:
    if query.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else query.dtype) == torch.bfloat16


class _WholeAttention(torch.autograd.Function):
    """S = QKᵀ, E = exp(S − max), O = EV / Σ; with G = dO / Σ: dV = EᵀG, dS = E ∘ (GVᵀ − rowsum(G ∘ O)), dQ = dS K,
    dK = dSᵀ Q, Q scaled. E and not softmax is rounded: where one key has nearly all the weight, its weight stays exact.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
        query, value = query.float() * scale, value.bfloat16()
        hidden = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)  # adding is faster than filling
        scores = torch.matmul(query, key.float().transpose(2, 3)).add_(hidden)
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
