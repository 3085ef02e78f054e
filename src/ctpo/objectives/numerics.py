"""Every numeric limit of the objectives, each with its reason, and the dtypes the mathematics runs in."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

SATURATION: Final = 20.0
"""|log ratio| of one token above which the pair of log-probs is taken for broken, not for drift.

e^20 is 5e8: no pair of policies a few updates apart differs that much on a sampled token, whereas sentinels
(-9999, the dtype's minimum) and underflow do. The published implementation clamps to ±20 at the same place,
which lets one such token close the trust region for the rest of its row.
"""

POSITIVE_LOGP: Final = 1e-3
"""Value above which an input is no log-prob, in nats.

A log-prob is at most 0. Rounding in float32 lifts it by some 1e-6, for example where a trainer subtracts the
log-sum-exp of large logits.
"""

LOG_WEIGHT_CAP: Final = 10.0
"""Ceiling of a compound log weight (product or mean of several tokens), raised to the trust region where that
is wider.

It truncates the weight (e^10 = 22,026) and keeps the gradient, so one runaway row cannot own a mini-batch. A
constant ceiling would cut inside a region that widens with t: 0.05·√t passes 10 at t = 40,000.
"""

EXP_CAP: Final = 80.0
"""Largest exponent handed to exp: float32 overflows at 88.7, and the rest is left for the advantage and the
sum.
"""


FAR: Final = 1e30
"""Stands for an absent bound: an infinite one would make 0·inf = NaN at t = 0."""


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Dtype of the mathematics: float64 when any input is float64, float32 otherwise."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def prefix_dtype(device: torch.device) -> torch.dtype:
    """Dtype prefix sums accumulate in: float64 except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def reads_are_free(x: Tensor) -> bool:
    """Whether a value of the tensor can be read without a wait: it is ordinary memory of the CPU, and neither the
    compiler, a tracer nor a transform of torch is at work.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return not any(
        ask_torch(name)
        for name in ("_is_tracing", "_are_functorch_transforms_active", "_len_torch_dispatch_stack")
    )


def ask_torch(function: str) -> int:
    """What one of torch's internal functions without arguments returns; 1 if this version of torch lacks it.

    torch has no public way to ask which transforms and modes are active.
    """
    asked: Any = getattr(torch._C, function, None)
    return 1 if asked is None else int(asked())
