"""From a call's parts and tensors to the arguments, constants and grid of the Triton kernels.

Imports Triton, through `triton_kernels`, when the first call takes that path and not before.
"""

from __future__ import annotations

import ctypes
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives.plan import Plan
from ctpo.objectives.ratios import (
    CumulativeRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    Ratio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.reductions import Count, Reduction
from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight, Surrogate

TILE: Final = 2048
"""Tokens a program takes: with 8 warps, 8 a thread; a row of 524,288 tokens makes 256 programs."""

SMALLEST_TILE: Final = 16
WARP_TOKENS: Final = 256

REDUCED_AT_ONCE: Final = 64
"""Programs whose shares the last one adds in one step: with 32 rows of the table, 2048 numbers."""

RATIO_CODES: Final[dict[type[Ratio], str]] = {
    TokenRatio: "TOKEN",
    CumulativeRatio: "CUMULATIVE",
    PrefixMeanRatio: "PREFIX_MEAN",
    SequenceRatio: "SEQUENCE",
    SequenceMeanRatio: "SEQUENCE_MEAN",
    MinPrefixRatio: "MIN_PREFIX",
    UnitRatio: "UNIT",
}
SURROGATE_CODES: Final[dict[type[Surrogate], str]] = {
    MinClip: "MIN_CLIP",
    StopGradientWeight: "WEIGHT",
    Linear: "LINEAR",
}


@dataclass(frozen=True)
class Tiles:
    """How [rows, length] tokens are cut into tiles, one a program, and the buffers' dtype and device."""

    rows: int
    length: int
    dtype: torch.dtype
    device: torch.device

    @property
    def block(self) -> int:
        """Tokens of a tile, a power of two."""
        return max(SMALLEST_TILE, min(TILE, 1 << (self.length - 1).bit_length()))

    @property
    def chunks(self) -> int:
        """Tiles of a row."""
        return -(-self.length // self.block)

    @property
    def padded_chunks(self) -> int:
        """The next power of two, so that kernels are compiled anew for few lengths."""
        return 1 << (self.chunks - 1).bit_length()

    @property
    def programs(self) -> int:
        """Tiles in all."""
        return self.rows * self.chunks

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised buffer, of the compute dtype unless told."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def launch(self, kernel: str, *args: Any, **constants: Any) -> None:
        """Start a kernel of `triton_kernels`, one program a tile."""
        warps = max(1, min(8, self.block // WARP_TOKENS))
        with _current(self.device):
            getattr(kernels(), kernel)[(self.programs,)](
                *args, self.length, self.chunks, BLOCK=self.block, num_warps=warps, **constants
            )


def kernels() -> ModuleType:
    """The module of the kernels; imports Triton."""
    return import_module("ctpo.objectives.triton_kernels")


def code(module: str, name: str) -> int:
    """Number of a compile-time constant of one of the kernels' modules."""
    return int(getattr(import_module(f"ctpo.objectives.triton_{module}"), name).value)


def strided(values: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A tensor with its two strides; one value a row does not move along the row."""
    if values is None:
        return None, 0, 0
    return values, values.stride(0), values.stride(1) if values.ndim == 2 else 0


def gradient_path(plan: Plan) -> str:
    """Name of the way the gradient runs."""
    # A stop-gradient weight is a constant, whichever way its ratio would be differentiated.
    if not plan.through:
        return "OWN"
    return "SUFFIX" if isinstance(plan.ratio, (CumulativeRatio, PrefixMeanRatio)) else "WHOLE_ROW"


def ratio_constants(plan: Plan) -> dict[str, int]:
    """Constants of the scan."""
    return {"RATIO": code("parts", RATIO_CODES[type(plan.ratio)])}


def plan_constants(plan: Plan) -> dict[str, Any]:
    """Constants of the terms: parts and bounds. New bounds compile the kernel anew."""
    bases = plan.bases
    return {
        **ratio_constants(plan),
        "SURROGATE": code("parts", SURROGATE_CODES[type(plan.surrogate)]),
        "LOWER": bases.lower,
        "UPPER": bases.upper,
        "DUAL": math.inf if bases.dual is None else bases.dual,
        "CAP": plan.ratio.log_cap,
        "POWER": bases.power,
        "PATH": code("kernels", gradient_path(plan)),
    }


def reduction_arguments(
    reduction: Reduction, num_tokens: Count | None, num_sequences: Count | None, device: torch.device
) -> dict[str, Any]:
    """What the loss is divided by: a count made in the kernel, one on the device, or a number."""
    by_tokens = reduction.name == "token-mean"
    given: Count | None = num_tokens if by_tokens else num_sequences
    if reduction.name == "sum":
        given = 1.0
    divisor = "NUMBER" if given is not None else "BY_TOKENS" if by_tokens else "BY_SEQUENCES"
    on_device = isinstance(given, Tensor) and given.device == device
    number = 0.0 if given is None or on_device else float(given)  # a tensor on the host is free to read
    # Kernels take a Python float as float32; two of them hold what a double does.
    high = ctypes.c_float(number).value
    return {
        "count": given if on_device else None,
        "count_high": high,
        "count_low": number - high,
        "WIDTH": REDUCED_AT_ONCE,
        "DIVISOR": code("figures", divisor),
        "NORM": reduction.norm_length if reduction.name == "seq-mean-token-sum-norm" else 1.0,
        "LENGTH_POWER": reduction.length_power - (1.0 if reduction.name == "seq-mean-token-mean" else 0.0),
    }


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
