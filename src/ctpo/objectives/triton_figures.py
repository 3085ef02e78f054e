"""The sums of a call as the Triton kernels carry them: one column a program, reduced by the last to arrive.

Float atomics would add in the order in which programs happen to finish; a table reduced in its own order gives
the same bits every time. Needs Triton, like `triton_parts`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

# Rows of the table, the names as in `stats.Sums`.
TOKENS = tl.constexpr(0)
SEQUENCES = tl.constexpr(1)
USABLE = tl.constexpr(2)
NONFINITE = tl.constexpr(3)
SATURATED = tl.constexpr(4)
HIGH = tl.constexpr(5)
LOW = tl.constexpr(6)
DUAL = tl.constexpr(7)
X = tl.constexpr(8)
XX = tl.constexpr(9)
RHO = tl.constexpr(10)
RHO_SQUARED = tl.constexpr(11)
D = tl.constexpr(12)
DD = tl.constexpr(13)
K3 = tl.constexpr(14)
COUNTED = tl.constexpr(15)
COUNTED_SEQUENCES = tl.constexpr(16)
LOSS = tl.constexpr(17)
DEPTH = tl.constexpr(18)
HEIGHT = tl.constexpr(19)
ROWS = tl.constexpr(20)
PADDED_ROWS = tl.constexpr(32)

# What the loss is divided by.
NUMBER = tl.constexpr(0)
BY_TOKENS = tl.constexpr(1)
BY_SEQUENCES = tl.constexpr(2)


@triton.jit
def put(table, row: tl.constexpr, value):
    """Store this program's share of one sum."""
    programs = tl.num_programs(0).to(tl.int64)
    tl.store(table + row * programs + tl.program_id(0), value.to(tl.float64))


@triton.jit
def put_count(table, row: tl.constexpr, flags):
    put(table, row, tl.sum(flags.to(tl.int32)))


@triton.jit
def put_weights(table, x, rho, kept):
    """Sums over truncated log weights and weights of the usable tokens, and their extremes."""
    wide, zero = x.to(tl.float64), 0.0
    put(table, X, tl.sum(tl.where(kept, wide, zero)))
    put(table, XX, tl.sum(tl.where(kept, wide * wide, zero)))
    rho = tl.where(kept, rho.to(tl.float64), zero)  # e^80 squared overflows float32
    put(table, RHO, tl.sum(rho))
    put(table, RHO_SQUARED, tl.sum(rho * rho))
    # The depth is the negative of the lowest, so that one maximum serves both.
    put(table, DEPTH, tl.max(tl.where(kept, -wide, float("-inf"))))
    put(table, HEIGHT, tl.max(tl.where(kept, wide, float("-inf"))))


@triton.jit
def put_divergences(table, d):
    """Σd, Σd² and Σ(e^d − 1 − d); float64, for e^d − 1 − d cancels at small d."""
    wide = d.to(tl.float64)
    put(table, D, tl.sum(wide))
    put(table, DD, tl.sum(wide * wide))
    put(table, K3, tl.sum(tl.exp(wide) - 1.0 - wide))


@triton.jit
def is_last(counter):
    """Whether every other program has stored its shares.

    The barrier puts this program's stores before its arrival, the atomic orders arrivals between programs
    (release its own stores, acquire those of the earlier arrivals).
    """
    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1, sem="acq_rel")
    tl.debug_barrier()
    return arrived == tl.num_programs(0) - 1


@triton.jit
def pick(vector, row: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, PADDED_ROWS) == row, vector, 0.0))


@triton.jit
def reduce_table(table, WIDTH: tl.constexpr):
    """Sums and maxima of each row of the table, always in the same order."""
    programs = tl.num_programs(0)
    row = tl.arange(0, PADDED_ROWS)[:, None]
    sums = tl.zeros((PADDED_ROWS, WIDTH), tl.float64)
    tops = tl.full((PADDED_ROWS, WIDTH), float("-inf"), tl.float64)
    for start in range(0, programs, WIDTH):
        program = start + tl.arange(0, WIDTH)[None, :]
        there = (row < ROWS) & (program < programs)
        at = table + row * programs.to(tl.int64) + program
        # Past the first-level cache, which is not coherent between programs.
        values = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
        sums += tl.where(row < DEPTH, values, 0.0)
        tops = tl.maximum(tops, tl.where(there, values, float("-inf")))
    return tl.sum(sums, 1), tl.max(tops, 1)


@triton.jit
def finalise(
    table, stats, loss, factor, count, count_high, count_low, NORM: tl.constexpr, DIVISOR: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Loss, its factor, and the figures of `stats.finalise` in the order of `triton_path.FIGURES`.

    `count` is a pointer or None; without it and with DIVISOR a NUMBER, the number is count_high + count_low.
    """
    sums, tops = reduce_table(table, WIDTH)
    if DIVISOR == BY_TOKENS:
        total = pick(sums, COUNTED)
    elif DIVISOR == BY_SEQUENCES:
        total = pick(sums, COUNTED_SEQUENCES)
    elif count is not None:
        total = tl.load(count).to(tl.float64)
    else:
        total = tl.cast(count_high, tl.float64) + tl.cast(count_low, tl.float64)
    share = 1.0 / tl.maximum(total, 1.0) / NORM
    tl.store(factor, share)
    tl.store(loss, (share * pick(sums, LOSS)).to(loss.dtype.element_ty))

    tokens, usable = pick(sums, TOKENS), pick(sums, USABLE)
    n_tokens, n = tl.maximum(tokens, 1.0), tl.maximum(usable, 1.0)
    high, low = pick(sums, HIGH), pick(sums, LOW)
    nonfinite, saturated = pick(sums, NONFINITE), pick(sums, SATURATED)
    mean, squares, weight = pick(sums, X) / n, pick(sums, RHO_SQUARED), pick(sums, RHO)
    some = usable > 0
    dtype: tl.constexpr = stats.dtype.element_ty
    tl.store(stats + 0, ((high + low) / n_tokens).to(dtype))
    tl.store(stats + 1, (high / n_tokens).to(dtype))
    tl.store(stats + 2, (low / n_tokens).to(dtype))
    tl.store(stats + 3, (pick(sums, DUAL) / n_tokens).to(dtype))
    tl.store(stats + 4, mean.to(dtype))
    tl.store(stats + 5, tl.sqrt(tl.maximum(pick(sums, XX) / n - mean * mean, 0.0)).to(dtype))
    rows = tl.arange(0, PADDED_ROWS)
    depth = tl.max(tl.where(rows == DEPTH, tops, float("-inf")))
    height = tl.max(tl.where(rows == HEIGHT, tops, float("-inf")))
    tl.store(stats + 6, tl.where(some, -depth, 0.0).to(dtype))
    tl.store(stats + 7, tl.where(some, height, 0.0).to(dtype))
    ess = weight * weight / tl.where(squares > 0, n * squares, 1.0)
    tl.store(stats + 8, tl.where(squares > 0, ess, 0.0).to(dtype))
    tl.store(stats + 9, (-pick(sums, D) / n).to(dtype))
    tl.store(stats + 10, (pick(sums, DD) / (2.0 * n)).to(dtype))
    tl.store(stats + 11, (pick(sums, K3) / n).to(dtype))
    tl.store(stats + 12, nonfinite.to(dtype))
    tl.store(stats + 13, saturated.to(dtype))
    tl.store(stats + 14, (nonfinite + saturated).to(dtype))
    tl.store(stats + 15, tokens.to(dtype))
    tl.store(stats + 16, pick(sums, SEQUENCES).to(dtype))
