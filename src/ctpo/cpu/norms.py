"""RMS norms as one step of the autograd graph, computed in pieces that fit a cache.

y = w ∘ x̂ with x̂ = x / √(mean x² + ε). The gradients for a gradient g of y are
∂x = (g∘w − x̂ · mean(g∘w∘x̂)) / √(mean x² + ε) and ∂w = Σ g∘x̂.

As transformers writes it, a norm takes six passes over memory in the forward pass and keeps three tensors as large as
x. Here only x is kept, and one number per token. Under autocast the result has autocast's dtype. The products that read
it would convert it anyway, and so they share one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_PIECE = 1 << 18
"""How many numbers of x are handled at once: 1 MB of float32, the size of a core's second cache."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """w ∘ x / √(mean x² + ε) over the last dimension, computed in the dtype of x.

    Args:
        x: [..., D] in float32 or wider.
        weight: [D].
        eps: ε.
        dtype: the dtype of the result.
    """
    apply: Callable[..., Tensor] = _RMSNorm.apply
    return apply(x.reshape(-1, x.shape[-1]), weight, eps, dtype).view(x.shape)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        y, scale = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 1)
        for part in _pieces(x):
            piece = x[part]
            mean = torch.linalg.vecdot(piece, piece).div_(x.shape[1])
            scale[part, 0] = mean.add_(eps).rsqrt_()
            y[part] = (piece * scale[part]).mul_(weight)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part in _pieces(x):
            grad, unit = grads[0][part].to(x.dtype), x[part] * scale[part]
            if d_weight is not None:
                d_weight += (grad * unit).sum(dim=0)
            if d_x is not None:
                grad = grad * weight
                inward = torch.linalg.vecdot(grad, unit).div_(x.shape[1])
                torch.mul(grad.addcmul_(unit, inward[:, None], value=-1), scale[part], out=d_x[part])
        return d_x, d_weight, None, None


def _pieces(x: Tensor) -> Iterator[slice]:
    rows = max(1, _PIECE // x.shape[1])
    return (slice(start, start + rows) for start in range(0, len(x), rows))


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[None]:
    """A context in which each RMS norm of the model on a CPU is one step. Their values change only by rounding."""
    plain = _known.get(model)
    if plain is None:
        plain = _known[model] = _plain_norms(model)
    chosen = [norm for norm in plain if "forward" not in vars(norm)]
    try:
        for norm in chosen:
            norm.forward = _forward(norm)
        yield
    finally:
        for norm in chosen:
            del norm.forward


_known: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
"""The norms of each model that `rms_norm` may replace."""


def _forward(norm: Any) -> Callable[[Tensor], Tensor]:
    own = norm.forward

    def forward(x: Tensor) -> Tensor:
        if x.dtype.itemsize < 4:
            result: Tensor = own(x)
            return result
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        with torch.autocast("cpu", enabled=False):
            return rms_norm(x, norm.weight, norm.variance_epsilon, dtype)

    return forward


def _plain_norms(model: nn.Module) -> list[Any]:
    """The modules on a CPU that are called RMS norms and compute them. Some families scale by 1 + w instead of w."""
    named = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    return [norm for norm in named if _is_plain(norm)]


@torch.no_grad()
def _is_plain(norm: Any) -> bool:
    weight = getattr(norm, "weight", None)
    if type(weight) is not nn.Parameter or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    if weight.ndim != 1 or not isinstance(getattr(norm, "variance_epsilon", None), float):
        return False
    x = torch.linspace(-1, 2, 2 * len(weight)).view(2, -1)
    with torch.autocast("cpu", enabled=False):
        expected, result = norm(x), rms_norm(x, weight, norm.variance_epsilon, x.dtype)
    return expected.shape == result.shape and torch.allclose(expected, result, rtol=1e-4, atol=1e-6)
