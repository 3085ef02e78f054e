"""Faster matrix products for the few rows that decoding has, on a CPU.

A linear layer at decode time multiplies a large weight by 8 to 128 rows. Two things are slow there, and neither is
the arithmetic:

- MKL's float32 kernel for x @ W.T is slower at few rows than its kernel for W @ x.T: 1.3 times at 12 to 48 rows of
  SmolLM2-135M's layers on a Cascade Lake core, 1.1 times at 128.
- In bfloat16 on an x86 core without bfloat16 arithmetic, oneDNN emulates it. Turning a block of the weight into
  float32 while it is in the cache, and multiplying in float32, was 2 to 3 times faster there from 16 rows on. It
  rounds where the emulation does: products and sums in float32, the result to bfloat16.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_X86 = ("x86_64", "AMD64")
_FEW, _MANY = 8, 128
"""Rows between which W @ x.T is worth it in float32."""
_WORTH_UPCASTING = 12
"""Rows from which it is worth turning a 16-bit weight into float32."""
_LARGE = 1 << 14
"""Outputs of a layer from which only a head has so many."""
_BLOCK = 1 << 20
"""Weight entries turned at once: 4 MB, about what a core's caches hold."""


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Within this, the model's plain linear layers on a CPU use the faster product; nothing else changes.

    Only layers of exactly `nn.Linear` whose `forward` nobody has exchanged are touched; quantised layers and
    adapters around a layer keep theirs. Weights are read at each call, never copied for longer.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    chosen = [layer for layer in layers if _is_slow(layer.weight)]
    scratch: dict[str, Tensor] = {}
    try:
        for layer in chosen:
            layer.forward = _product(layer, scratch)  # type: ignore[method-assign, assignment]
        yield
    finally:
        for layer in chosen:
            del layer.forward


def _is_slow(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.layout != torch.strided or type(weight) is not nn.Parameter:
        return False
    if weight.dtype == torch.float32:  # other libraries have not been measured
        return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return weight.dtype == torch.bfloat16 and emulates_bfloat16()


@cache
def has_bfloat16() -> bool:
    """Whether this machine's CPU is an x86 with bfloat16 arithmetic (AVX-512 BF16 or AMX)."""
    if platform.machine() not in _X86:
        return False
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch's own names, still private
    return any(getattr(torch.cpu, name, bool)() for name in flags)


def emulates_bfloat16() -> bool:
    """Whether this machine's CPU is an x86 without it; of other processors nothing is claimed."""
    return platform.machine() in _X86 and not has_bfloat16()


def _product(layer: nn.Linear, scratch: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if x.dtype != layer.weight.dtype or torch.is_grad_enabled():
            return F.linear(x, layer.weight, layer.bias)
        if x.dtype == torch.float32 and _FEW <= rows <= _MANY:
            return _transposed(layer, x)
        if x.dtype == torch.bfloat16 and rows >= _WORTH_UPCASTING:
            return _upcast(layer, x, scratch)
        return F.linear(x, layer.weight, layer.bias)

    return forward


def _transposed(layer: nn.Linear, x: Tensor) -> Tensor:
    x_IN = x.reshape(-1, x.shape[-1]).t().contiguous()
    y_ON = layer.weight @ x_IN if layer.bias is None else torch.addmm(layer.bias[:, None], layer.weight, x_IN)
    return _rows_first(y_ON, x)


def _upcast(layer: nn.Linear, x: Tensor, scratch: dict[str, Tensor]) -> Tensor:
    weight = layer.weight
    if "weight" not in scratch or scratch["weight"].numel() < min(weight.numel(), _BLOCK + weight.shape[1]):
        scratch["weight"] = torch.empty(max(_BLOCK, weight.shape[1]))
    step = max(1, _BLOCK // weight.shape[1])
    x_IN = x.reshape(-1, x.shape[-1]).t().float().contiguous()
    y_ON = x.new_empty(weight.shape[0], x_IN.shape[1])
    for start in range(0, weight.shape[0], step):
        block = weight[start : start + step]
        room = scratch["weight"][: block.numel()].view(block.shape).copy_(block)
        product = room @ x_IN
        y_ON[start : start + step] = (
            product if layer.bias is None else product + layer.bias[start : start + step, None]
        )
    return _rows_first(y_ON, x)


def _rows_first(y_ON: Tensor, x: Tensor) -> Tensor:
    """Back to the layout that the rest of the model computes fast with; the logits may keep theirs, being large."""
    y_NO = y_ON.t() if y_ON.shape[0] > _LARGE else y_ON.t().contiguous()
    return y_NO.view(*x.shape[:-1], -1)
