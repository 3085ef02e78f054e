"""RMS norms as one step of the graph, in pieces that fit a cache.

y = w ∘ x̂, x̂ = x / √(mean x² + ε); ∂x = (g∘w − x̂ · mean(g∘w∘x̂)) / √(mean x² + ε), ∂w = Σ g∘x̂. As transformers
writes it, a norm is six passes over memory forward and keeps three tensors as large as x; here x is kept and one number
a token. Under autocast the result is in autocast's precision, as the products that read it would turn it anyway, so
that they share one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_PIECE = 1 << 18
"""Numbers of x handled at once: 1 MB of float32, a core's second cache."""


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """w ∘ x / √(mean x² + ε) over the last dimension, computed in float32 at least.

    Args:
        x: [..., D] in float32 or wider.
        weight: [D].
        eps: ε.
        dtype: of the result.
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
    """Within, the model's RMS norms on a CPU are one step each; their values differ by rounding only."""
    found = _known.get(model)
    if found is None:
        found = _known[model] = _plain_norms(model)
    chosen = [norm for norm in found if "forward" not in vars(norm)]
    try:
        for norm in chosen:
            norm.forward = _forward(norm)
        yield
    finally:
        for norm in chosen:
            del norm.forward


_known: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


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
    """The modules on a CPU that are called RMS norms and are: some families scale by 1 + w."""
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
        expected, found = norm(x), rms_norm(x, weight, norm.variance_epsilon, x.dtype)
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-4, atol=1e-6)
