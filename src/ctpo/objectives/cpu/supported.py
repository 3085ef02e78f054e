"""Which calls the C pass can run. Everything else runs the definition."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ctpo.objectives.inputs import Inputs
from ctpo.objectives.numerics import ask_torch
from ctpo.objectives.ratios import (
    CumulativeRatio,
    DecayedRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    Ratio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight, Surrogate
from ctpo.objectives.trust_regions import LogBand, RatioBand, TrustRegion, Unbounded

RATIOS: Final[tuple[type, ...]] = (
    TokenRatio,
    CumulativeRatio,
    PrefixMeanRatio,
    SequenceRatio,
    SequenceMeanRatio,
    MinPrefixRatio,
    UnitRatio,
    DecayedRatio,
)
SURROGATES: Final[tuple[type, ...]] = (MinClip, StopGradientWeight, Linear)
REGIONS: Final[tuple[type, ...]] = (LogBand, RatioBand, Unbounded)


def objective_refusal(ratio: Ratio, region: TrustRegion, surrogate: Surrogate) -> str | None:
    """Why the C pass does not know an objective, or None if it does. Subclasses may do anything: they are refused."""
    for part, known in ((ratio, RATIOS), (region, REGIONS), (surrogate, SURROGATES)):
        if type(part) not in known:
            return f"it does not know {type(part).__name__}"
    if isinstance(region, LogBand) and region.log_drift:
        return "the centre of its bounds moves with the position (log_drift)"
    if getattr(region, "statistic", None) is not None:
        return "its bounds apply to the ratio that weighs, not to a statistic of their own"
    return None


def call_refusal(inputs: Inputs) -> str | None:
    """Why the C pass cannot run a call on these tensors, or None if it can.

    It reads plain memory and is unknown to torch's transforms, so it needs ordinary tensors outside of any of them.
    """
    if torch.compiler.is_compiling() or ask_torch("_is_tracing"):
        return "the call is being traced"
    if ask_torch("_are_functorch_transforms_active"):
        return "a transform of torch.func is active"
    if ask_torch("_len_torch_function_stack") or ask_torch("_len_torch_dispatch_stack"):
        return "a mode of torch is active, such as a default device or FakeTensorMode"
    for name, value in vars(inputs).items():
        if isinstance(value, Tensor) and (reason := _strange(value)):
            return f"{name} {reason}"
    for name in ("num_tokens", "num_sequences"):
        count = getattr(inputs, name)
        if isinstance(count, Tensor) and (count.numel() != 1 or count.requires_grad):
            return f"{name} is not one number without gradient"
    return None


def plain(value: Tensor) -> bool:
    """Whether a tensor is ordinary memory outside of torch's transforms."""
    return not ask_torch("_are_functorch_transforms_active") and _strange(value) is None


def _strange(x: Tensor) -> str | None:
    """Why a tensor is not ordinary memory on the CPU, or None if it is."""
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"is a {type(x).__name__}"
    if not x.is_cpu:
        return f"is on {x.device}"
    if x.layout is not torch.strided or x.is_nested or x.is_quantized:
        return "is sparse, nested or quantised"
    if x.is_neg() or x.is_conj() or x._is_zerotensor() or torch._is_functional_tensor(x):
        return "is a lazy view (negated, conjugate, zero or functional)"
    if x.is_floating_point() and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        return "carries a forward-mode tangent"
    if x.requires_grad and x.is_inference() and torch.is_grad_enabled():
        return "was made in inference mode and requires a gradient"
    try:
        size = x.untyped_storage().nbytes()
    except NotImplementedError:  # such as a tensor inside of a backward pass over several gradients at once
        return "has no memory of its own"
    return "has less memory than its shape says" if size < _bytes_needed(x) else None


def _bytes_needed(x: Tensor) -> int:
    """The size of the memory that holds a tensor, up to its last element."""
    count = x.numel()
    if count and not x.is_contiguous():
        count = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return int(x.storage_offset() + count) * x.element_size() if count else 0
