"""Faster matrix products for the few rows of a decoding step, on a CPU.

A linear layer in a decoding step multiplies a large weight by 8 to 128 rows. Three things are slow there, and none is
the arithmetic:

- With AVX-512, MKL's float32 kernel for x @ W.T is slower at few rows than its kernel for W @ x.T: 1.3 times at 12 to
  48 rows of SmolLM2-135M's layers on a Cascade Lake core, and 1.1 times at 128. With AVX2 it is the other way around:
  on an AMD EPYC core, W @ x.T took 3 times as long at 8 rows and 1.1 times at 32 and 128.
- With AVX2, MKL multiplies by the weight of an output layer more slowly than oneDNN: 1.3 times at 8 and 32 rows of
  SmolLM2-135M's on that core, and 1.2 times at 64.
- On an x86 core without bfloat16 arithmetic, oneDNN emulates it. It was 2 to 3 times faster there, from 16 rows on, to
  convert a block of the weight to float32 while it is in the cache and to multiply in float32. The rounding is the
  emulation's: products and sums are in float32, and the result is rounded to bfloat16.
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
"""The numbers of rows between which another product is faster in float32."""
_WORTH_UPCASTING = 12
"""The number of rows from which converting a 16-bit weight to float32 is faster."""
_LARGE = 1 << 14
"""More outputs than this have only output layers, whose result is as wide as the vocabulary."""
_BLOCK = 1 << 20
"""How many weight entries are converted at once: 4 MB, about what a core's caches hold."""


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """A context in which the model's plain linear layers on a CPU use the faster product. Nothing else changes.

    Only layers of exactly `nn.Linear` with their own `forward` take part. Quantised layers and adapters around a layer
    keep theirs. Weights are read at each call and never copied for longer.
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
    if weight.dtype == torch.float32:  # only MKL has been measured
        return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
    return weight.dtype == torch.bfloat16 and emulates_bfloat16()


@cache
def has_bfloat16() -> bool:
    """Whether this machine's CPU is an x86 with bfloat16 arithmetic (AVX-512 BF16 or AMX).

    For other processors the answer is no, since nothing is known about them.
    """
    if platform.machine() not in _X86:
        return False
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch's own names, still private
    return any(getattr(torch.cpu, name, bool)() for name in flags)


def emulates_bfloat16() -> bool:
    """Whether this machine's CPU is an x86 without bfloat16 arithmetic."""
    return platform.machine() in _X86 and not has_bfloat16()


def _product(layer: nn.Linear, scratch: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if x.dtype != layer.weight.dtype or torch.is_grad_enabled():
            return F.linear(x, layer.weight, layer.bias)
        if x.dtype == torch.float32 and _FEW <= rows <= _MANY:
            return _faster(layer, x)
        if x.dtype == torch.bfloat16 and rows >= _WORTH_UPCASTING:
            return _upcast(layer, x, scratch)
        return F.linear(x, layer.weight, layer.bias)

    return forward


@cache
def prefers_transposed() -> bool:
    """Whether W @ x.T is MKL's faster product. That is not measured here, so that a resumed run multiplies alike."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _faster(layer: nn.Linear, x: Tensor) -> Tensor:
    if prefers_transposed():
        return _transposed(layer, x)
    if layer.out_features > _LARGE and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
        return product
    return F.linear(x, layer.weight, layer.bias)


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
    """[N, O] outputs in the layout that the rest of the model is fast with; logits are large and keep theirs."""
    y_NO = y_ON.t() if y_ON.shape[0] > _LARGE else y_ON.t().contiguous()
    return y_NO.view(*x.shape[:-1], -1)
