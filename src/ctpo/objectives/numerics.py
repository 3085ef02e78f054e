"""The numeric limits of the objectives, each with its reason, the dtypes of the mathematics, and what may be read."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

SATURATION: Final = 20.0
"""|log ratio| of one token, in nats, above which the two log-probs are taken to be broken.

e^20 is 5e8. No two policies a few updates apart differ that much on a sampled token, but sentinels (−9999, the
minimum of the dtype) and underflow do. The published implementation clamps to ±20 in the same place. There, one such
token closes the trust region for the rest of its row.
"""

POSITIVE_LOGP: Final = 1e-3
"""Value above which an input is no log-prob, in nats.

A log-prob is at most 0. Rounding in float32 lifts it by some 1e-6, for example where a trainer subtracts the
log-sum-exp of large logits.
"""

LOG_WEIGHT_CAP: Final = 10.0
"""Ceiling of a log weight made of several tokens, in nats. It is raised where the trust region is wider.

It truncates the weight at e^10 = 22,026 and keeps the gradient, so that one runaway row cannot own a minibatch. A
constant ceiling would cut inside a region that widens with t: 0.05·√t passes 10 at t = 40,000.
"""

EXP_CAP: Final = 80.0
"""The largest exponent given to exp. float32 overflows at 88.7; the rest is left for the advantage and the sum."""

FAR: Final = 1e30
"""Stands for an absent bound in the C pass. An infinite one would make 0·inf = NaN at t = 0."""


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the mathematics: float64 if any input is float64, float32 otherwise."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def prefix_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which sums are accumulated: float64, or float32 on MPS, which has no float64."""
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
