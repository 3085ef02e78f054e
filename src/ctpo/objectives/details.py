"""What happened to each token of a call, and its profile over positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.surrogates import TokenTerms
from ctpo.objectives.tokens import Tokens


@dataclass(frozen=True)
class Details:
    """What happened to each token. All tensors are detached and have the shape of the log-probs.

    Attributes:
        log_ratio: d_t, the log ratio of the token itself, nats, 0 where not kept.
        log_weight: the weighing log ratio after truncation, nats, 0 where not kept.
        log_left: the log of the weight that multiplies the token's gradient after clipping; −inf if it gets none.
        position: t, the number of sampled tokens so far, from 1. It means nothing outside the mask.
        clip: int8: 0 inside the region, 1 above, −1 below, 2 dual-clipped.
        kept: tokens under the mask with usable log-probs.

    Example:
        details = objective(*batch, details=True).details
        details.position[0, :3]  # [1, 2, 3]
    """

    log_ratio: Tensor
    log_weight: Tensor
    log_left: Tensor
    position: Tensor
    clip: Tensor
    kept: Tensor


@torch.no_grad()
def describe(tokens: Tokens, log_weight: Tensor, log_left: Tensor, terms: TokenTerms) -> Details:
    """The details of a call of the definition."""
    kept = tokens.kept
    clip = terms.high.to(torch.int8) - terms.low.to(torch.int8) + 2 * terms.dual.to(torch.int8)
    return Details(
        log_ratio=tokens.log_ratio.detach(),
        log_weight=torch.where(kept, log_weight, torch.zeros_like(log_weight)),
        log_left=log_left,
        position=tokens.positions().long(),
        clip=torch.where(kept, clip, torch.zeros_like(clip)),
        kept=kept,
    )


@torch.no_grad()
def position_profile(details: Details, length: int, bins: int = 16) -> dict[str, Tensor]:
    """Clip fractions and moments of the log ratio by position.

    The bins are equal pieces of 1..length. Tokens past `length` fall into the last one. To pool several calls, add
    their sums (`count`, `clipped`, …) and divide by `count`.

    Args:
        details: of one call with `details=True`.
        length: largest position of interest, tokens.
        bins: number of bins.

    Returns:
        Tensors [bins]: `edge` (upper end of the bin, tokens), `count`, the sums `clipped`, `high`, `low`,
        `dual`, `log_ratio`, `log_ratio_squared`, and `clip_fraction`, `log_ratio_mean`, `log_ratio_std` (0 in
        empty bins).

    Raises:
        ValueError: length or bins below 1.

    Example:
        profile = position_profile(objective(*batch, details=True).details, length=20, bins=4)
        profile["count"].shape[0] <= 4  # True
    """
    checks.number("length", length, 1)
    checks.number("bins", bins, 1)
    device = details.position.device
    wide = prefix_dtype(device)
    index = ((details.position.to(wide) - 1) * bins / length).long().clamp(0, bins - 1).reshape(-1)
    kept, clip = details.kept.reshape(-1), details.clip.reshape(-1)
    x = details.log_weight.reshape(-1).to(wide)
    columns = {
        "count": kept,
        "clipped": kept & (clip.abs() == 1),
        "high": kept & (clip == 1),
        "low": kept & (clip == -1),
        "dual": kept & (clip == 2),
        "log_ratio": torch.where(kept, x, torch.zeros_like(x)),
        "log_ratio_squared": torch.where(kept, x.square(), torch.zeros_like(x)),
    }
    zeros = torch.zeros(bins, dtype=wide, device=device)
    sums = {name: zeros.index_add(0, index, column.to(wide)) for name, column in columns.items()}
    n = sums["count"].clamp(min=1)
    mean = sums["log_ratio"] / n
    variance = (sums["log_ratio_squared"] / n - mean.square()).clamp(min=0)
    edge = torch.arange(1, bins + 1, device=device) * (length / bins)
    return {
        "edge": edge,
        **sums,
        "clip_fraction": sums["clipped"] / n,
        "log_ratio_mean": mean,
        "log_ratio_std": variance.sqrt(),
    }
