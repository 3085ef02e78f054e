"""Whether bfloat16 computes faster here than float32: measured, since a CPU may accept it and emulate it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

COMPUTE_DTYPES = ("auto", "float32", "bfloat16")
_WORTH = 1.2  # conversions, norms and the optimizer stay as they are
_TOKENS = 256


def bfloat16_context(model: Any, compute_dtype: str, *, exact_anchor: bool) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 for the forward pass where that is asked for or pays; parameters, their gradients and
    the optimizer stay float32.

    Args:
        model: whose width is measured.
        compute_dtype: one of COMPUTE_DTYPES; "auto" on a CPU measures once a process, elsewhere leaves the choice
            to `bf16`.
        exact_anchor: the ratio's anchor comes from an engine in float32, which "auto" must not disagree with.
    """
    device = next(model.parameters()).device.type
    wanted = compute_dtype == "bfloat16"
    if compute_dtype == "auto" and device == "cpu" and not exact_anchor:
        wanted = model.dtype == torch.float32 and bfloat16_pays(_width(model))
    return torch.autocast(device, torch.bfloat16) if wanted else nullcontext()


@cache
def bfloat16_pays(width: int) -> bool:
    """Whether a layer of this width multiplies faster in bfloat16, the conversion of its input included."""
    return bfloat16_speedup(width) > _WORTH


def bfloat16_speedup(width: int) -> float:
    """Time of a [256, width] × [width, 4 width] product in float32 over that in bfloat16, best of interleaved tries."""
    draw = torch.Generator().manual_seed(0)  # the global random state belongs to the training
    tokens, weight = (
        torch.randn(_TOKENS, width, generator=draw),
        torch.randn(4 * width, width, generator=draw),
    )
    low = weight.bfloat16()
    spent = [(_seconds(tokens, weight), _seconds(tokens, low)) for _ in range(5)]
    return min(full for full, _ in spent) / min(half for _, half in spent)


def _seconds(tokens: Tensor, weight: Tensor) -> float:
    started = time.process_time()
    tokens.to(weight.dtype) @ weight.t()
    return time.process_time() - started


def _width(model: Any) -> int:
    return int(model.get_input_embeddings().embedding_dim)
