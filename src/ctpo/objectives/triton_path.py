"""The GPU path: loss, token losses, statistics and gradient of a padded call in three Triton kernels.

Casts, masks, denominators and figures are all made in the kernels. Forward launches two (where rows fit one
tile, one and the fill of a counter), backward one, and nothing is read by the host. Tests hold it equal to
`compose`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctpo.objectives.compose import Output
from ctpo.objectives.numerics import compute_dtype
from ctpo.objectives.plan import Plan
from ctpo.objectives.reductions import Count, Reduction
from ctpo.objectives.surrogates import StopGradientWeight
from ctpo.objectives.triton_launch import (
    Tiles,
    code,
    gradient_path,
    plan_constants,
    ratio_constants,
    reduction_arguments,
    strided,
)

FIGURES: Final = (
    *("clip_fraction", "clip_fraction_high", "clip_fraction_low", "clip_fraction_dual"),
    *("log_ratio_mean", "log_ratio_std", "log_ratio_min", "log_ratio_max", "ess"),
    *("kl_k1", "kl_k2", "kl_k3", "nonfinite", "saturated", "neutralised", "tokens", "sequences"),
)
"""Names of the figures in the order the kernel writes them, that of `stats.finalise`."""


@dataclass(frozen=True)
class Batch:
    """One padded call as it was handed over: any floating dtypes, any strides, a mask of any dtype."""

    logps: Tensor
    old_logps: Tensor
    advantages: Tensor
    mask: Tensor
    weights: Tensor | None = None
    loss_mask: Tensor | None = None
    num_tokens: Count | None = None
    num_sequences: Count | None = None


@lru_cache(maxsize=1)
def installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


def applies(backend: str, logps: Tensor) -> bool:
    """Whether a padded call takes this path: when asked to, and unasked on a GPU where Triton works.

    Raises:
        ValueError: asked for, and Triton is not installed or the tensors are not where it runs.
    """
    if backend == "triton":
        if not installed():
            raise ValueError("backend: 'triton' needs the package triton; install it or pass 'auto'.")
        if not logps.is_cuda and not os.environ.get("TRITON_INTERPRET"):
            raise ValueError(f"backend: 'triton' runs on a GPU, logps are on {logps.device}; pass 'auto'.")
        return logps.numel() > 0
    if backend != "auto" or not logps.is_cuda or logps.numel() == 0 or not installed():
        return False
    from ctpo.objectives.triton_trust import works  # stands above this file

    return works(logps.device)


def run(plan: Plan, reduction: Reduction, batch: Batch) -> Output:
    """Output of a padded call of at least one token, equal to `compose`."""
    dtype = compute_dtype(batch.logps, batch.old_logps)
    rows, length = batch.logps.shape
    tiles = Tiles(rows, length, dtype, batch.logps.device)
    stats = tiles.empty(len(FIGURES))
    loss, token_loss = _Triton.apply(  # type: ignore[no-untyped-call]
        batch.logps, plan, reduction, batch, tiles, stats
    )
    return Output(loss, token_loss, dict(zip(FIGURES, stats.unbind(), strict=True)))


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logps: Tensor, plan: Plan, reduction: Reduction, batch: Batch, tiles: Tiles, stats: Tensor
    ) -> tuple[Tensor, Tensor]:
        wide, shape = torch.float64, (tiles.rows, tiles.length)
        path, weighs = gradient_path(plan), isinstance(plan.surrogate, StopGradientWeight)
        inputs = (
            *strided(logps), *strided(batch.old_logps), *strided(batch.mask), *strided(batch.loss_mask)
        )  # fmt: skip
        counter, sums = tiles.empty(1, dtype=torch.int32), None
        token_loss, loss = tiles.empty(*shape), tiles.empty()
        if tiles.chunks > 1:
            sums = tiles.empty(code("parts", "FIELDS"), tiles.programs, dtype=wide)
            # An output stands for the compute dtype.
            tiles.launch("scan_kernel", *inputs, sums, counter, loss, **ratio_constants(plan))
        else:
            counter.zero_()
        saved = tiles.empty(*shape) if weighs or path != "OWN" else None
        gate = None if weighs else tiles.empty(*shape, dtype=torch.uint8)
        slope_sums = tiles.empty(tiles.programs, dtype=wide) if path != "OWN" else None
        row_factor, factor = tiles.empty(tiles.rows, dtype=wide), tiles.empty(1, dtype=wide)
        table = tiles.empty(code("figures", "ROWS"), tiles.programs, dtype=wide)
        division = reduction_arguments(reduction, batch.num_tokens, batch.num_sequences, tiles.device)
        tiles.launch(
            "terms_kernel", *inputs, *strided(batch.advantages), *strided(batch.weights),
            sums, counter, table, token_loss, saved, gate, row_factor, slope_sums, stats, loss, factor,
            *(division.pop(name) for name in ("count", "count_high", "count_low")),
            CHUNKS=tiles.padded_chunks, **division, **plan_constants(plan),
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.tiles, ctx.path, ctx.input_dtype = tiles, path, logps.dtype
        ctx.save_for_backward(
            token_loss if saved is None else saved, gate, row_factor, factor, slope_sums
        )  # fmt: skip
        return loss, token_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor | None, grad_token: Tensor | None) -> tuple[Tensor | None, ...]:
        tiles, (saved, gate, row_factor, factor, slope_sums) = ctx.tiles, ctx.saved_tensors
        if grad_loss is None and grad_token is None:
            return (None,) * 6
        if ctx.path != "OWN" and grad_token is not None:
            share = 0.0 if grad_loss is None else (row_factor * factor * grad_loss)[:, None]
            grad = _pull_back(saved, gate, share + grad_token, ctx.path).to(ctx.input_dtype)
            return (grad, *(None,) * 5)
        grad = tiles.empty(tiles.rows, tiles.length, dtype=ctx.input_dtype)
        tiles.launch(
            "gradient_kernel", grad, saved, gate, row_factor, factor, slope_sums, grad_loss,
            *strided(grad_token), PATH=code("kernels", ctx.path), CHUNKS=tiles.padded_chunks,
        )  # fmt: skip
        return (grad, *(None,) * 5)


def _pull_back(slopes: Tensor, kept: Tensor, scale: Tensor, path: str) -> Tensor:
    """Gradient through the statistic of token losses weighed one by one, in torch: their tiles' sums are not
    known before the backward pass.
    """
    wide = (slopes * scale).to(torch.float64)
    wide = wide.flip(-1).cumsum(-1).flip(-1) if path == "SUFFIX" else wide.sum(-1, keepdim=True)
    return torch.where(kept != 0, wide, torch.zeros_like(wide))
