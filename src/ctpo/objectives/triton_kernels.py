"""The three Triton kernels of a padded call: sums over tiles, terms and figures, gradient.

One program takes one tile of BLOCK tokens, so a single row of 524,288 tokens fills a GPU as well as many rows
do. Where a row is one tile the first kernel is not needed. Nothing is read by the host.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from ctpo.objectives import triton_figures as figures
from ctpo.objectives import triton_parts as parts

# How the gradient runs: through the weighed token alone, or through the statistic's sum over tokens.
OWN = tl.constexpr(0)
SUFFIX = tl.constexpr(1)
WHOLE_ROW = tl.constexpr(2)


@triton.jit
def scan_kernel(
    logps, l0, l1, old, o0, o1, mask, m0, m1, loss_mask, k0, k1, sums, counter, out, length, chunks,
    RATIO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of every tile, which the next kernel turns into what came before each tile in its row."""
    row, _, columns, inside = parts.place(length, chunks, BLOCK)
    programs = tl.num_programs(0).to(tl.int64)
    at = sums + tl.program_id(0)
    if tl.program_id(0) == 0:
        tl.store(counter, 0)
    marked, counted = parts.read_mask(mask, m0, m1, loss_mask, k0, k1, row, columns, inside)
    tl.store(at + parts.TOKENS * programs, tl.sum(marked.to(tl.int32)).to(tl.float64))
    tl.store(at + parts.COUNTED * programs, tl.sum(counted.to(tl.int32)).to(tl.float64))
    if RATIO != parts.TOKEN and RATIO != parts.UNIT:
        _, d, _, _ = parts.read_log_probs(
            logps, l0, l1, old, o0, o1, row, columns, inside, marked, out.dtype.element_ty
        )  # fmt: skip
        if RATIO == parts.MIN_PREFIX:
            smallest = tl.min(tl.where(marked, d, float("inf"))).to(tl.float64)
            tl.store(at + parts.SMALLEST * programs, smallest)
        else:
            tl.store(at + parts.LOG_RATIOS * programs, tl.sum(d.to(tl.float64)))


@triton.jit
def terms_kernel(
    logps, l0, l1, old, o0, o1, mask, m0, m1, loss_mask, k0, k1, advantages, a0, a1, weights, w0, w1,
    sums, counter, table, token_loss, saved, gate, row_factor, slope_sums, stats, loss, factor,
    count, count_high, count_low, length, chunks,
    RATIO: tl.constexpr, SURROGATE: tl.constexpr, LOWER: tl.constexpr, UPPER: tl.constexpr,
    DUAL: tl.constexpr, CAP: tl.constexpr, POWER: tl.constexpr, LENGTH_POWER: tl.constexpr,
    NORM: tl.constexpr, DIVISOR: tl.constexpr, PATH: tl.constexpr, BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Token losses, what the gradient needs, and, in the program that arrives last, loss and figures.

    Writes:
        token_loss: unreduced losses.
        saved: slopes, under WEIGHT or a PATH that is not OWN; elsewhere token_loss serves.
        gate: OWN and not WEIGHT, tokens that met no bound; PATH not OWN, usable tokens.
        row_factor: length^LENGTH_POWER of every row, WIDE.
        slope_sums: WIDE sum of the slopes of every tile, when PATH is not OWN.
    """
    dtype: tl.constexpr = token_loss.dtype.element_ty
    row, chunk, columns, inside = parts.place(length, chunks, BLOCK)
    marked, counted = parts.read_mask(mask, m0, m1, loss_mask, k0, k1, row, columns, inside)
    new, d, kept, finite = parts.read_log_probs(
        logps, l0, l1, old, o0, o1, row, columns, inside, marked, dtype
    )  # fmt: skip

    # What the row holds before this tile, and in all.
    here, counted_here = tl.sum(marked.to(tl.int32)), tl.sum(counted.to(tl.int32))
    drift, tokens_before = 0.0, 0.0
    row_tokens, row_counted = here.to(tl.float64), counted_here.to(tl.float64)
    if CHUNKS > 1:
        tokens_before = parts.of_row(sums, parts.TOKENS, row, chunks, chunk, CHUNKS)
        row_tokens = parts.of_row(sums, parts.TOKENS, row, chunks, chunks, CHUNKS)
        row_counted = parts.of_row(sums, parts.COUNTED, row, chunks, chunks, CHUNKS)
    position = tl.maximum(tokens_before + tl.cumsum(marked.to(tl.int32), 0).to(tl.float64), 1.0)
    many = tl.maximum(row_tokens, 1.0)

    if RATIO == parts.MIN_PREFIX:
        left = columns - 1
        valid = inside & (columns % BLOCK > 0)  # the tile's first token has its past in other tiles
        marked_left, _ = parts.read_mask(mask, m0, m1, None, 0, 0, row, left, valid)
        _, d_left, _, _ = parts.read_log_probs(
            logps, l0, l1, old, o0, o1, row, left, valid, marked_left, dtype
        )  # fmt: skip
        carried = tl.full((), float("inf"), tl.float64)
        if CHUNKS > 1:
            carried = parts.smallest_of_row(sums, row, chunks, chunk, CHUNKS)
        x = parts.min_prefix(d, tl.where(marked_left, d_left, float("inf")), carried)
    else:
        total = 0.0
        if RATIO == parts.SEQUENCE or RATIO == parts.SEQUENCE_MEAN:
            total = tl.sum(d.to(tl.float64))
        if CHUNKS > 1 and RATIO != parts.TOKEN and RATIO != parts.UNIT:
            drift = parts.of_row(sums, parts.LOG_RATIOS, row, chunks, chunk, CHUNKS)
            total = parts.of_row(sums, parts.LOG_RATIOS, row, chunks, chunks, CHUNKS)
        x = parts.statistic(d, position, drift, total, many, RATIO)

    # Anything may stand where a token does not count, NaN included; with advantage 0 its slope is 0.
    usable = kept & counted
    advantage = tl.load(advantages + row * a0 + columns * a1, mask=usable, other=0.0).to(dtype)
    if weights is not None:
        advantage *= tl.load(weights + row * w0 + columns * w1, mask=usable, other=0.0).to(dtype)
    scale = parts.power_of(position, POWER).to(dtype)
    truncated, rho, slope, high, low, dual = parts.surrogate(
        x, scale, advantage, LOWER, UPPER, DUAL, CAP, SURROGATE
    )  # fmt: skip
    value = slope
    if SURROGATE == parts.WEIGHT:
        value = slope * new

    out = row * length + columns
    tl.store(token_loss + out, value, mask=inside)
    active = kept & ~(high | low | dual)
    if PATH != OWN:
        slope = tl.where(active, slope, 0.0)
        if RATIO == parts.PREFIX_MEAN:
            slope = slope / position.to(dtype)
        elif RATIO == parts.SEQUENCE_MEAN:
            slope = slope / many.to(dtype)
        tl.store(slope_sums + tl.program_id(0), tl.sum(slope.to(tl.float64)))
        tl.store(gate + out, kept.to(tl.uint8), mask=inside)
        tl.store(saved + out, slope, mask=inside)
    elif SURROGATE == parts.WEIGHT:
        tl.store(saved + out, slope, mask=inside)
    else:
        tl.store(gate + out, active.to(tl.uint8), mask=inside)

    share = parts.power_of(tl.maximum(row_counted, 1.0), LENGTH_POWER)
    first = chunk == 0
    if first:
        tl.store(row_factor + row, share)
    figures.put(table, figures.SEQUENCES, (first & (row_tokens > 0)).to(tl.float64))
    figures.put(table, figures.COUNTED_SEQUENCES, (first & (row_counted > 0)).to(tl.float64))
    figures.put(table, figures.TOKENS, here)
    figures.put(table, figures.COUNTED, counted_here)
    figures.put_count(table, figures.USABLE, kept)
    figures.put_count(table, figures.NONFINITE, marked & ~finite)
    figures.put_count(table, figures.SATURATED, marked & finite & ~kept)
    figures.put_count(table, figures.HIGH, high & kept)
    figures.put_count(table, figures.LOW, low & kept)
    figures.put_count(table, figures.DUAL, dual & kept)
    figures.put_weights(table, truncated, rho, kept)
    figures.put_divergences(table, d)
    figures.put(table, figures.LOSS, share * tl.sum(value.to(tl.float64)))
    if figures.is_last(counter):
        figures.finalise(table, stats, loss, factor, count, count_high, count_low, NORM, DIVISOR, WIDTH)


@triton.jit
def gradient_kernel(
    grad, saved, gate, row_factor, factor, slope_sums, grad_loss, grad_token, t0, t1, length, chunks,
    PATH: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Gradient of the log-probs from what the terms kernel saved; `grad_token` only where PATH is OWN."""
    row, chunk, columns, inside = parts.place(length, chunks, BLOCK)
    at = row * length + columns
    value = tl.zeros((BLOCK,), saved.dtype.element_ty)
    if PATH != WHOLE_ROW:
        value = tl.load(saved + at, mask=inside, other=0.0)
    dtype: tl.constexpr = saved.dtype.element_ty
    share = tl.zeros((), tl.float64)
    if grad_loss is not None:
        share = tl.load(factor) * tl.load(row_factor + row) * tl.load(grad_loss).to(tl.float64)
    scale = tl.zeros((BLOCK,), dtype) + share.to(dtype)
    if grad_token is not None:
        scale += tl.load(grad_token + row * t0 + columns * t1, mask=inside, other=0.0).to(dtype)
    if PATH != OWN:
        chunk_of_row = tl.arange(0, CHUNKS)
        sums = tl.load(slope_sums + row * chunks + chunk_of_row, mask=chunk_of_row < chunks, other=0.0)
        if PATH == SUFFIX:
            later = tl.sum(tl.where(chunk_of_row > chunk, sums, 0.0))
            value = (later + tl.cumsum(value.to(tl.float64), 0, reverse=True)).to(dtype)
        else:
            value += tl.sum(sums).to(dtype)
    value *= scale
    if gate is not None:
        value = tl.where(tl.load(gate + at, mask=inside, other=0) != 0, value, 0.0)
    tl.store(grad + at, value.to(grad.dtype.element_ty), mask=inside)
