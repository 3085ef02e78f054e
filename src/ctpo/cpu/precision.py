"""Whether bfloat16 computes faster here than float32: measured, since a CPU may accept it and emulate it."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from torch import Tensor

_WORTH = 1.2  # conversions, norms and the optimizer stay as they are
_TOKENS = 256


def computes_in_bfloat16(trainer: Any) -> bool:
    """Whether a trainer multiplies its float32 weights in bfloat16 by `compute_dtype`, in scoring and in sampling."""
    args = trainer.args
    if args.bf16 or args.fp16 or not hasattr(args, "compute_dtype"):
        return False
    return wants_bfloat16(trainer.model, args.compute_dtype, exact_anchor=args.anchor == "rollout")


def wants_bfloat16(model: Any, compute_dtype: str, *, exact_anchor: bool) -> bool:
    """Whether products with the model's float32 weights are to be in bfloat16: where that is asked for or pays.
    Parameters, their gradients and the optimizer stay float32.

    Args:
        model: whose width is measured.
        compute_dtype: "float32", "bfloat16" or "auto". On a CPU "auto" measures once per process; elsewhere it leaves
            the choice to `bf16`.
        exact_anchor: the ratio's anchor comes from the rollout engine, with which "auto" must not disagree.
    """
    if model.dtype != torch.float32 or compute_dtype == "float32":
        return False
    if compute_dtype == "bfloat16":
        return True
    device = next(model.parameters()).device.type
    return device == "cpu" and not exact_anchor and bfloat16_pays(_width(model))


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
