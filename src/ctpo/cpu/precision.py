"""Whether a CPU multiplies faster in bfloat16 than in float32. It is measured, because a CPU may only emulate it."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

_WORTHWHILE = 1.2
"""The speed-up of a product from which the whole step gains: conversions, norms and the optimizer stay in float32."""
_TOKENS = 256


@cache
def bfloat16_pays(width: int) -> bool:
    """Whether a layer of this width multiplies faster in bfloat16, including the conversion of its input.

    It is measured once per process and width.
    """
    return bfloat16_speedup(width) > _WORTHWHILE


def bfloat16_speedup(width: int) -> float:
    """The time of a [256, width] × [width, 4 width] product in float32, divided by its time in bfloat16.

    Each time is the best of five, and the two products take turns.
    """
    draw = torch.Generator().manual_seed(0)  # the global random state belongs to the training
    tokens = torch.randn(_TOKENS, width, generator=draw)
    weight = torch.randn(4 * width, width, generator=draw)
    rounded = weight.bfloat16()
    seconds = [(_seconds(tokens, weight), _seconds(tokens, rounded)) for _ in range(5)]
    return min(full for full, _ in seconds) / min(half for _, half in seconds)


def _seconds(tokens: Tensor, weight: Tensor) -> float:
    started = time.process_time()
    tokens.to(weight.dtype) @ weight.t()
    return time.process_time() - started
