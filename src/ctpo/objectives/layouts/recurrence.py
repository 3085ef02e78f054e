"""Sums that forget: x_t = decay · x_{t−1} + v_t, as a scan.

The closed form x_t = decay^t · Σ_{s≤t} v_s decay^{−s} overflows on long rows. So rows are cut into blocks in which
decay^{−t} stays small, and the ends of the blocks are joined by doubling. Within a block the closed form is as exact as
the recurrence itself: an error made at s has shrunk by decay^{t−s} when it reaches t.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

_GROWTH: Final = {torch.float64: 230.0, torch.float32: 40.0}
"""The largest exponent of decay^{−t} = e^{…} within a block: far from overflow, and from where exp loses digits."""


def decayed_sum(values: Tensor, steps: Tensor, decay: float) -> Tensor:
    """x_t = decay^{m_t} · x_{t−1} + v_t along the last dimension, from x_0 = 0; the shape of `values`.

    Args:
        values: v, finite, float32 or float64.
        steps: m, the shape of `values`, true where the sum forgets. Elsewhere it is left as it is.
        decay: above 0 and below 1.
    """
    length = values.shape[-1]
    rate = -math.log(decay)
    size = min(length, int(_GROWTH[values.dtype] / rate) + 1)
    if length <= 1:
        return values
    blocks = -(-length // size)
    missing = blocks * size - length
    if missing:
        values, steps = (torch.nn.functional.pad(x, (0, missing)) for x in (values, steps))
    shape = (*values.shape[:-1], blocks, size)
    v, m = values.reshape(shape), steps.reshape(shape).to(values.dtype)
    count = m.cumsum(-1)
    first = m[..., :1]
    grown = ((count - first) * rate).exp()  # decay^{−t}, where t is 0 at the first token of the block
    inside = (v * grown).cumsum(-1) / grown
    if blocks > 1:
        whole = linear_recurrence(inside[..., -1], (count[..., -1] * -rate).exp())
        before = torch.nn.functional.pad(whole[..., :-1], (1, 0))
        inside = inside + before.unsqueeze(-1) * (count * -rate).exp()
    return inside.reshape(*values.shape[:-1], blocks * size)[..., :length]


def linear_recurrence(values: Tensor, factors: Tensor) -> Tensor:
    """x_k = factors_k · x_{k−1} + values_k along the last dimension, from x_0 = 0, by log2 K doublings.

    Args:
        values, factors: the same shape. Products of the factors must not overflow.
    """
    step = 1
    while step < values.shape[-1]:
        earlier, product = (torch.nn.functional.pad(x[..., :-step], (step, 0)) for x in (values, factors))
        values, factors = values + factors * earlier, factors * product
        step *= 2
    return values
