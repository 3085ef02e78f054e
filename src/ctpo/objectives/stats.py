"""The statistics of one call: detached 0-d tensors on the device of the inputs, computed without synchronisation.

x is a token's weighing log ratio after truncation and d its own log ratio, both in nats. A token is usable if it lies
under the mask and its log-probs can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.surrogates import TokenTerms
from ctpo.objectives.tokens import Tokens

SUMS: Final = (
    "tokens", "sequences", "usable", "nonfinite", "saturated", "positive", "high", "low", "dual",
    "offset", "offset_squared", "weight", "weight_squared", "d", "d_squared", "k3",
    "origin", "lowest", "highest",
)  # fmt: skip
"""What a pass over the tokens sums, in this order, in one vector.

tokens: tokens under the mask. sequences: sequences with at least one of them.
usable, nonfinite, saturated, positive: tokens of each kind, see `Tokens`.
high, low, dual: usable tokens that the trust region touched, see `TokenTerms`.
offset, offset_squared: sums of x − origin and of its square, over the usable tokens. `origin` is any one number near
    the values of x, so that the standard deviation of values far from 0 keeps its digits.
weight, weight_squared: sums of w and w², where w is e^x times any one constant that keeps both within range.
d, d_squared, k3: sums of d, d² and e^d − 1 − d.
lowest, highest: extremes of x over the usable tokens. They may be any finite numbers if there are none.
"""

N = TypeVar("N", float, Tensor)


@torch.no_grad()
def finalise(sums: Tensor) -> dict[str, Tensor]:
    """The statistics that follow from the sums of a call.

    Args:
        sums: [len(SUMS)], float64 (float32 on MPS).

    Returns:
        0-d tensors of the same dtype, which counts tokens exactly:

        clip_fraction: (high + low) / tokens, as the published implementation counts. It leaves out the dual clip.
        clip_fraction_high, clip_fraction_low, clip_fraction_dual: tokens beyond each bound, divided by tokens.
        log_ratio_mean, log_ratio_std, log_ratio_min, log_ratio_max: of x over the usable tokens, in nats. The
            standard deviation is that of the population.
        ess: (Σ e^x)² / (n Σ e^2x), the effective sample size as a share of the n usable tokens.
        kl_k1, kl_k2, kl_k3: estimates of KL(old ‖ new) from tokens of the old policy: the means of −d, d²/2 and
            e^d − 1 − d over the usable tokens, in nats (J. Schulman, "Approximating KL Divergence", 2020).
        nonfinite, saturated, neutralised: numbers of tokens under the mask with unusable log-probs, see `Tokens`;
            neutralised is the sum of the two others.
        positive_logps: number of tokens under the mask with a log-prob above 0 (above `POSITIVE_LOGP`). Such an input
            holds probabilities or logits, not log-probs.
        tokens, sequences: the default denominators.
    """
    return _statistics(sums.unbind())


def finalise_numbers(sums: Sequence[float]) -> dict[str, Tensor]:
    """The same statistics on the CPU from sums that are numbers: one tensor is made instead of sixty."""
    statistics = _statistics(sums)
    values = torch.tensor(list(statistics.values()), dtype=torch.float64, device="cpu").unbind()
    return dict(zip(statistics, values, strict=True))


def _statistics(sums: Sequence[N]) -> dict[str, N]:
    """The statistics from their sums; only operators that numbers and tensors share."""
    tokens, sequences, usable, nonfinite, saturated, positive, high, low, dual = sums[:9]
    offset, offset_squared, weight, weight_squared, d, d_squared, k3, origin, lowest, highest = sums[9:]
    all_tokens, n = tokens + (tokens == 0), usable + (usable == 0)  # at least 1
    mean = offset / n
    variance = offset_squared / n - mean * mean
    any_usable = usable / n  # 1 or 0
    return {
        "clip_fraction": (high + low) / all_tokens,
        "clip_fraction_high": high / all_tokens,
        "clip_fraction_low": low / all_tokens,
        "clip_fraction_dual": dual / all_tokens,
        "log_ratio_mean": origin * any_usable + mean,
        "log_ratio_std": ((variance + abs(variance)) / 2) ** 0.5,
        "log_ratio_min": lowest * any_usable,
        "log_ratio_max": highest * any_usable,
        "ess": weight * weight / (n * (weight_squared + (weight_squared == 0))),
        "kl_k1": -d / n,
        "kl_k2": d_squared / (2 * n),
        "kl_k3": k3 / n,
        "nonfinite": nonfinite,
        "saturated": saturated,
        "neutralised": nonfinite + saturated,
        "positive_logps": positive,
        "tokens": tokens,
        "sequences": sequences,
    }


@torch.no_grad()
def summarise(tokens: Tokens, log_weight: Tensor, terms: TokenTerms) -> dict[str, Tensor]:
    """The statistics of a call, from its tokens.

    Args:
        tokens: the call's tokens.
        log_weight: x, the shape of the tokens.
        terms: which tokens the trust region touched.
    """
    kept, layout = tokens.kept, tokens.layout
    wide = prefix_dtype(kept.device)
    x, d = log_weight.to(wide), tokens.log_ratio.to(wide)
    zero, inf = d.new_zeros(()), d.new_full((1,), torch.inf)
    # An infinity beside the tokens stands in for an empty batch.
    lowest = torch.cat([torch.where(kept, x, inf).reshape(-1), inf]).min()
    highest = torch.cat([torch.where(kept, x, -inf).reshape(-1), -inf]).max()
    lowest, highest = layout.max_shards(torch.stack([-lowest, highest])).nan_to_num(neginf=0.0).unbind()
    # Relative to the largest x, no weight overflows and not all of them underflow.
    offset = torch.where(kept, x - highest, zero)
    weight = torch.where(kept, offset.exp(), zero)
    counts = (
        kept,
        tokens.nonfinite,
        tokens.saturated,
        tokens.positive,
        *(flag & kept for flag in terms.touched),
    )
    sums = [
        tokens.mask.sum(),
        *(flag.sum() for flag in counts),
        *(y.sum() for y in (offset, offset.square(), weight, weight.square(), d, d.square(), d.expm1() - d)),
    ]
    added = layout.sum_shards(torch.stack([each.to(wide) for each in sums]))
    sequences = layout.count_sequences(tokens.mask).to(wide).reshape(1)
    return finalise(torch.cat([added[:1], sequences, added[1:], torch.stack([highest, -lowest, highest])]))
