"""One run of the C pass: its arguments from tensors, its results as tensors."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives.cpu.library import library
from ctpo.objectives.inputs import Inputs
from ctpo.objectives.numerics import EXP_CAP, FAR, POSITIVE_LOGP, SATURATION, compute_dtype
from ctpo.objectives.ratios import DecayedRatio, Ratio
from ctpo.objectives.reductions import Count, Reduction
from ctpo.objectives.stats import SUMS
from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight, Surrogate
from ctpo.objectives.tokens import as_bool
from ctpo.objectives.trust_regions import LogBand, RatioBand, Unbounded

_RATIOS: Final = (
    "TokenRatio", "CumulativeRatio", "PrefixMeanRatio", "SequenceRatio", "SequenceMeanRatio", "MinPrefixRatio",
    "UnitRatio", "DecayedRatio",
)  # fmt: skip
"""In the order of the enumeration in native.c; so are the next two."""
_SURROGATES: Final = (MinClip, StopGradientWeight, Linear)
_DIVISORS: Final = {"sum": 0, "token-mean": 1}
_BY_SEQUENCES: Final = 2
_INTEGERS: Final = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FIRST_CAPACITY: Final = 4096
_INTEGER, _REAL, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class Call(ctypes.Structure):
    """The C pass's arguments; native.c says what each field means."""

    _fields_ = (
        *((name, _INTEGER) for name in ("ratio", "surrogate", "through", "divisor")),
        *(
            (name, _REAL)
            for name in ("decay", "low", "high", "dual", "power", "widest", "log_cap", "exp_cap")
        ),
        *((name, _REAL) for name in ("saturation", "far", "positive_logp", "norm_length", "length_power")),
        *((name, _INTEGER) for name in ("tokens", "sequences", "row_length")),
        *((name, _POINTER) for name in ("edges", "numbers")),
        ("values", _INTEGER),
        *(
            (name, _POINTER)
            for name in ("logps", "old_logps", "response", "rejected", "advantages", "weights")
        ),
        *((name, _INTEGER) for name in ("advantage_per_token", "weight_per_token")),
        *((name, _REAL) for name in ("num_tokens", "num_sequences", "loss_gradient")),
        ("token_gradient", _POINTER),
        ("threads", _INTEGER),
        *((name, _POINTER) for name in ("token_loss", "gradient")),
    )


_Totals: Final = _REAL * (len(SUMS) + 2)
"""What the C pass sums over the tokens: `stats.SUMS`, the level of the weights, and the loss."""


@dataclass(frozen=True)
class Parts:
    """The parts of an objective that the C pass knows."""

    ratio: Ratio
    region: LogBand | RatioBand | Unbounded
    surrogate: Surrogate
    reduction: Reduction


@dataclass(frozen=True)
class Run:
    """What one run leaves.

    Attributes:
        loss: 0-d.
        token_loss: the shape of logps.
        gradient: of the loss by logps, or None if it was not asked for.
        sums: what the statistics are made from, see `ctpo.objectives.stats.SUMS`.
    """

    loss: Tensor
    token_loss: Tensor
    gradient: Tensor | None
    sums: list[float]


class BadSegmentsError(Exception):
    """The segments do not describe the tokens; the definition's checks say how."""


@torch.no_grad()
def forward(parts: Parts, inputs: Inputs, with_gradient: bool) -> Run:
    """The loss, the token losses, the sums of the statistics and, if asked for, the gradient of the loss.

    Raises:
        BadSegmentsError: segment ids or cumulative lengths that do not fit the tokens.
    """
    dtype = compute_dtype(inputs.logps, inputs.old_logps)
    token_loss = torch.empty(inputs.logps.shape, dtype=dtype, device="cpu")
    gradient = torch.empty_like(token_loss) if with_gradient else None
    totals = _run(parts, inputs, dtype, token_loss, gradient)
    loss = torch.full((), totals[-1], dtype=dtype, device="cpu")
    return Run(loss, token_loss, gradient, totals[: len(SUMS)])


@torch.no_grad()
def gradient_of(parts: Parts, inputs: Inputs, of_loss: float, of_tokens: Tensor | None) -> Tensor:
    """The gradient by logps of `of_loss · loss + Σ of_tokens · token_loss`, in the compute dtype."""
    dtype = compute_dtype(inputs.logps, inputs.old_logps)
    gradient = torch.empty(inputs.logps.shape, dtype=dtype, device="cpu")
    _run(parts, inputs, dtype, None, gradient, of_loss, of_tokens)
    return gradient


def _run(
    parts: Parts,
    inputs: Inputs,
    dtype: torch.dtype,
    token_loss: Tensor | None,
    gradient: Tensor | None,
    of_loss: float = 1.0,
    of_tokens: Tensor | None = None,
) -> list[float]:
    """The totals of one run, which fills the results."""
    shape = inputs.logps.shape
    per_token = {name: getattr(inputs, name) for name in ("advantages", "weights")}
    tensors = {
        "logps": _memory(inputs.logps, dtype),
        "old_logps": _memory(inputs.old_logps, dtype),
        "advantages": _memory(inputs.advantages, dtype),
        "weights": _memory(inputs.weights, dtype),
        "response": _bytes(inputs.response_mask),
        "rejected": _bytes(inputs.rejection_mask),
        "token_gradient": _memory(of_tokens, dtype),
        "token_loss": token_loss,
        "gradient": gradient,
    }
    call = Call.from_buffer_copy(_template(parts))
    call.tokens = inputs.logps.numel()
    call.values = math.prod(shape) if inputs.advantages.shape == shape else inputs.advantages.shape[0]
    if inputs.packed:
        edges, numbers = _segments(inputs, call.values)
        tensors |= {"edges": edges, "numbers": numbers}
        call.sequences = edges.numel() - 1
    else:
        call.sequences, call.row_length = shape
    for name, tensor in tensors.items():
        setattr(call, name, None if tensor is None else tensor.data_ptr())
    call.advantage_per_token, call.weight_per_token = (
        value is not None and value.shape == shape for value in per_token.values()
    )
    call.num_tokens, call.num_sequences = _count(inputs.num_tokens), _count(inputs.num_sequences)
    call.loss_gradient = of_loss
    call.threads = torch.get_num_threads()
    totals = _Totals()
    function = library().ctpo_run_double if dtype == torch.float64 else library().ctpo_run_float
    error = function(ctypes.byref(call), ctypes.byref(totals))
    if error == 1:
        raise BadSegmentsError
    if error:
        raise MemoryError("the C pass could not get memory for its tasks.")
    return list(totals)


@lru_cache(maxsize=64)
def _template(parts: Parts) -> Call:
    """The fields of an objective."""
    bases, reduction = parts.region.bases, parts.reduction
    linear = isinstance(parts.surrogate, Linear)
    through = parts.ratio.gradient == "through" and not isinstance(parts.surrogate, StopGradientWeight)
    bounds = [b for b in (bases.upper, bases.dual) if b is not None and not math.isinf(b)]
    norm_length = reduction.norm_length if reduction.name == "seq-mean-token-sum-norm" else 1.0
    return Call(
        ratio=_RATIOS.index(type(parts.ratio).__name__),
        surrogate=_SURROGATES.index(type(parts.surrogate)),
        through=through and type(parts.ratio).__name__ != "TokenRatio",
        divisor=_DIVISORS.get(reduction.name, _BY_SEQUENCES),
        decay=parts.ratio.decay if isinstance(parts.ratio, DecayedRatio) else 1.0,
        low=-FAR if linear else max(bases.lower, -FAR),
        high=FAR if linear else min(bases.upper, FAR),
        dual=FAR if bases.dual is None else min(bases.dual, FAR),
        power=bases.power,
        widest=max(bounds, default=0.0),
        log_cap=parts.ratio.log_cap,
        exp_cap=EXP_CAP,
        saturation=SATURATION,
        far=FAR,
        positive_logp=POSITIVE_LOGP,
        norm_length=norm_length,
        length_power=reduction.length_power - (reduction.name == "seq-mean-token-mean"),
    )


def _segments(inputs: Inputs, values: int) -> tuple[Tensor, Tensor | None]:
    """Where each segment begins, and the number of each; None where they are 0, 1, 2, …

    Raises:
        BadSegmentsError: the wrong shape or dtype, or ids that fall somewhere.
    """
    if inputs.cu_seqlens is not None:
        edges = inputs.cu_seqlens
        if edges.ndim != 1 or edges.shape[0] < 1 or edges.dtype not in _INTEGERS:
            raise BadSegmentsError
        return edges.to(torch.int64, copy=True).contiguous(), None
    assert inputs.segment_ids is not None
    ids, length = inputs.segment_ids, inputs.logps.shape[0]
    if ids.shape != (length,) or ids.dtype not in _INTEGERS:
        raise BadSegmentsError
    ids = _aligned(ids.to(torch.int64).contiguous())
    capacity = min(length, values, _FIRST_CAPACITY)
    find: Any = library().ctpo_find_segments
    find.restype = _INTEGER
    while True:
        edges = torch.empty(capacity + 1, dtype=torch.int64, device="cpu")
        numbers = torch.empty(capacity, dtype=torch.int64, device="cpu")
        count = find(
            *(_POINTER(ids.data_ptr()), _INTEGER(length), _INTEGER(capacity)),
            *(_POINTER(edges.data_ptr()), _POINTER(numbers.data_ptr())),
        )
        if count < 0:
            raise BadSegmentsError
        if count <= capacity:
            return edges[: count + 1], numbers[:count]
        capacity = count


def _memory(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The values in order, of one dtype, where a C pointer may read them."""
    return None if x is None else _aligned(x.to(dtype).contiguous())


def _bytes(mask: Tensor | None) -> Tensor | None:
    """A mask as one byte per token, not 0 where it holds."""
    if mask is None:
        return None
    return (mask if mask.dtype == torch.uint8 else as_bool(mask)).contiguous()


def _aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy if it begins between two elements (as memory of other programs may)."""
    return x.clone() if x.data_ptr() % x.element_size() else x


def _count(count: Count | None) -> float:
    """A denominator, at least 1; a negative one asks the C pass to count."""
    return -1.0 if count is None else max(float(count), 1.0)
