"""Pieces of the Triton kernels: reading a tile of tokens, the ratio's statistic, the surrogate.

Operations and dtypes follow `compose` step by step, so decisions fall the same way. This file needs Triton
and is imported only by `triton_path`, when a call takes that path. A tile is BLOCK neighbouring tokens of one
row; WIDE quantities are float64, all others are in the compute dtype.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import math

import triton
import triton.language as tl

from ctpo.objectives import numerics

SATURATION = tl.constexpr(numerics.SATURATION)
EXP_CAP = tl.constexpr(numerics.EXP_CAP)
INFINITE = tl.constexpr(math.inf)

# Codes of the parts, compile-time constants of a kernel.
TOKEN = tl.constexpr(0)
CUMULATIVE = tl.constexpr(1)
PREFIX_MEAN = tl.constexpr(2)
SEQUENCE = tl.constexpr(3)
SEQUENCE_MEAN = tl.constexpr(4)
MIN_PREFIX = tl.constexpr(5)
UNIT = tl.constexpr(6)

MIN_CLIP = tl.constexpr(0)
WEIGHT = tl.constexpr(1)
LINEAR = tl.constexpr(2)

# Rows of the table of sums over a tile that the first kernel leaves to the second.
LOG_RATIOS = tl.constexpr(0)
TOKENS = tl.constexpr(1)
COUNTED = tl.constexpr(2)
SMALLEST = tl.constexpr(3)
FIELDS = tl.constexpr(4)


@triton.jit
def place(length, chunks, BLOCK: tl.constexpr):
    """Row, chunk, columns and validity of this program's tile; 64-bit, as batches pass 2^31 elements."""
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    columns = chunk.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return row, chunk, columns, columns < length


@triton.jit
def read_mask(mask, m0, m1, loss_mask, k0, k1, row, columns, inside):
    """Tokens under the mask, and those of them that count in loss and denominators."""
    marked = tl.load(mask + row * m0 + columns * m1, mask=inside, other=0) != 0
    counted = marked
    if loss_mask is not None:
        counted = marked & (tl.load(loss_mask + row * k0 + columns * k1, mask=inside, other=0) != 0)
    return marked, counted


@triton.jit
def read_log_probs(logps, l0, l1, old, o0, o1, row, columns, inside, marked, dtype: tl.constexpr):
    """Log-probs, token log ratios (0 where not kept), kept tokens, and where both log-probs are finite."""
    new = tl.load(logps + row * l0 + columns * l1, mask=inside, other=0.0).to(dtype)
    anchor = tl.load(old + row * o0 + columns * o1, mask=inside, other=0.0).to(dtype)
    raw = new - anchor
    kept = marked & (tl.abs(raw) <= SATURATION)  # false for NaN and inf too
    finite = (tl.abs(new) < float("inf")) & (tl.abs(anchor) < float("inf"))
    return tl.where(kept, new, 0.0), tl.where(kept, raw, 0.0), kept, finite


@triton.jit
def of_row(sums, field: tl.constexpr, row, chunks, last, CHUNKS: tl.constexpr):
    """Sum of a field over the row's chunks before `last`, in the same order in every program."""
    chunk = tl.arange(0, CHUNKS)
    at = field * tl.num_programs(0).to(tl.int64) + row * chunks + chunk
    return tl.sum(tl.load(sums + at, mask=chunk < last, other=0.0))


@triton.jit
def smallest_of_row(sums, row, chunks, last, CHUNKS: tl.constexpr):
    """Smallest token log ratio of the row's chunks before `last`, +inf if there is none."""
    chunk = tl.arange(0, CHUNKS)
    at = SMALLEST * tl.num_programs(0).to(tl.int64) + row * chunks + chunk
    return tl.min(tl.load(sums + at, mask=chunk < last, other=float("inf")))


@triton.jit
def power_of(base, POWER: tl.constexpr):
    """base^POWER for positive float64; torch takes the same root for ±0.5."""
    if POWER == 0.0:
        power = base * 0.0 + 1.0
    elif POWER == 0.5:
        power = tl.sqrt(base)
    elif POWER == -0.5:
        power = 1.0 / tl.sqrt(base)
    elif POWER == 1.0:
        power = base
    elif POWER == -1.0:
        power = 1.0 / base
    else:
        power = tl.exp(POWER * tl.log(base))
    return power


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def min_prefix(d, before, carried):
    """d_t + the smallest log ratio strictly before t; `before` holds the tile's tokens shifted by one."""
    smallest = tl.minimum(tl.associative_scan(before, 0, smaller), carried.to(d.dtype))
    return d + tl.where(smallest == float("inf"), 0.0, smallest)


@triton.jit
def statistic(d, position, drift, total, row_tokens, RATIO: tl.constexpr):
    """The ratio's log weight at every token, before truncation.

    Args:
        d: token log ratios.
        position: WIDE count of generated tokens so far, at least 1.
        drift: WIDE sum of d over the chunks before.
        total, row_tokens: WIDE sum of d over the row, and its tokens, at least 1.
        RATIO: any code but MIN_PREFIX.
    """
    if RATIO == CUMULATIVE:
        x = (drift + tl.cumsum(d.to(tl.float64), 0)).to(d.dtype)
    elif RATIO == PREFIX_MEAN:
        x = ((drift + tl.cumsum(d.to(tl.float64), 0)) / position).to(d.dtype)
    elif RATIO == SEQUENCE:
        x = tl.zeros_like(d) + total.to(d.dtype)
    elif RATIO == SEQUENCE_MEAN:
        x = tl.zeros_like(d) + (total / row_tokens).to(d.dtype)
    elif RATIO == UNIT:
        x = tl.zeros_like(d)
    else:
        x = d
    return x


@triton.jit
def surrogate(
    x, scale, advantage, LOWER: tl.constexpr, UPPER: tl.constexpr, DUAL: tl.constexpr, CAP: tl.constexpr,
    SURROGATE: tl.constexpr,
):  # fmt: skip
    """Truncated log weight, its exponential, the slope of the loss, and which tokens met which bound.

    An absent bound is infinite: it meets no token and raises no ceiling. `slope` is the token's loss per unit
    of weighed log-prob; a token that met a bound keeps it under WEIGHT alone.
    """
    lower, upper, dual = scale * LOWER, scale * UPPER, scale * DUAL
    ceiling = tl.zeros_like(x) + CAP
    if UPPER < INFINITE:
        ceiling = tl.maximum(ceiling, upper)
    if DUAL < INFINITE:
        ceiling = tl.maximum(ceiling, dual)
    ceiling = tl.minimum(ceiling, EXP_CAP)
    nowhere = x != x  # x is finite
    high, low, beyond = nowhere, nowhere, nowhere
    if SURROGATE == MIN_CLIP:
        high, low = (advantage > 0) & (x > upper), (advantage < 0) & (x < lower)
        beyond = (advantage < 0) & (x > dual)
    elif SURROGATE == WEIGHT:
        high, low = x > upper, x < lower
    clipped = tl.where(high, upper, tl.where(low, lower, tl.where(beyond, dual, x)))
    truncated = tl.minimum(x, ceiling)
    slope = -advantage * tl.exp(tl.minimum(clipped, ceiling))
    return truncated, tl.exp(truncated), slope, high, low, beyond
