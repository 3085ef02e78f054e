"""The only door to `ctpo.cpu`: its faster computations, or what PyTorch does without them.

Everything in `ctpo.cpu` saves time and changes nothing but rounding, so the package must work without that folder.
No other module imports from it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

try:
    from ctpo.cpu import attention, memory, norms, precision, products, weights
except ImportError as error:  # also where only the folder's __pycache__ is left
    if (error.name or "").split(".")[:2] != ["ctpo", "cpu"]:
        raise
    PRESENT = False
else:
    PRESENT = True


def prefers_whole_attention(query: Tensor, key: Tensor) -> bool:
    """Whether `whole_attention` is the faster choice for these queries and keys, both [n, heads, tokens, width]."""
    return PRESENT and attention.prefers_whole_attention(query, key)


def whole_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Attention by whole products. Call it only where `prefers_whole_attention` says so.

    Args:
        query: [n, key heads, Q, width]; query heads that share a key head are further queries of it.
        key, value: [n, key heads, K, width].
        seen: [n or 1, 1, Q, K], true where a query may see a key.
        scale: the factor of the scores.

    Returns:
        [n, key heads, Q, width].
    """
    return attention.whole_attention(query, key, value, seen, scale)


def fused_norms(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which the model's RMS norms on a CPU are one step of the autograd graph each."""
    return norms.fused_norms(model) if PRESENT else nullcontext()


def fast_products(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which the model's linear layers on a CPU multiply few rows faster, without gradient."""
    return products.fast_products(model) if PRESENT else nullcontext()


def bfloat16_products(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which a float32 model multiplies in bfloat16, without gradient: from copies of its weights made
    once, or by plain autocast, which converts a weight at every product."""
    if PRESENT:
        return weights.bfloat16_products(model)
    return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)


def bfloat16_pays(width: int) -> bool:
    """Whether layers of this width were measured to multiply clearly faster in bfloat16 than in float32 here."""
    return PRESENT and precision.bfloat16_pays(width)


def has_bfloat16() -> bool:
    """Whether this machine's CPU is known to have bfloat16 arithmetic."""
    return PRESENT and products.has_bfloat16()


def keep_freed_memory() -> bool:
    """Let the process keep the memory that tensors free; whether the system's allocator could be set so."""
    return PRESENT and memory.keep_freed_memory()
