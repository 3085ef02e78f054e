"""What a call says about itself: detached 0-d tensors on the device of the inputs, computed without
synchronisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.surrogates import TokenTerms
from ctpo.objectives.tokens import Tokens


def summarise(tokens: Tokens, log_weight: Tensor, terms: TokenTerms) -> dict[str, Tensor]:
    """Means over the tokens under the mask (clip fractions) and over the usable ones (everything else).

    Returns:
        clip_fraction: (high + low) / N, as the published implementation counts; the dual clip is its own
            figure.
        clip_fraction_high, clip_fraction_low, clip_fraction_dual: its parts.
        log_ratio_mean, log_ratio_std, log_ratio_min, log_ratio_max: of the weighing log ratio, population
            std.
        ess: (Σρ)² / (n Σρ²), effective sample size as a share of the tokens.
        kl_k1, kl_k2, kl_k3: KL(old ‖ new) estimates from sampled tokens, with d = log π_θ − log π_old:
            mean of −d, of d²/2, of e^d − 1 − d.
        nonfinite, saturated, neutralised: counts of tokens under the mask that could not be used.
        tokens, sequences: N and S of this call.
    """
    with torch.no_grad():
        kept = tokens.kept
        dtype = log_weight.dtype
        weight = log_weight.detach().expand_as(tokens.logps)
        d = tokens.log_ratio.detach()
        zero, inf = (
            torch.zeros((), dtype=dtype, device=d.device),
            torch.full((), torch.inf, dtype=dtype, device=d.device),
        )
        total, usable = tokens.mask.sum().clamp(min=1), kept.sum()
        n = usable.clamp(min=1)
        any_usable = usable > 0

        def mean(values: Tensor) -> Tensor:
            return torch.where(kept, values, zero).sum() / n

        def share(flags: Tensor) -> Tensor:
            return (flags & kept).sum().to(dtype) / total

        average = mean(weight)
        # e^80 squared overflows float32, not float64.
        rho = torch.where(kept, weight, -inf).to(prefix_dtype(d.device)).exp()
        first, second = rho.sum() / n, rho.square().sum() / n
        high, low = share(terms.high), share(terms.low)
        flat = weight.reshape(-1)
        pad = inf.reshape(1)
        keep = kept.reshape(-1)
        return {
            "clip_fraction": high + low,
            "clip_fraction_high": high,
            "clip_fraction_low": low,
            "clip_fraction_dual": share(terms.dual),
            "log_ratio_mean": average,
            "log_ratio_std": mean((weight - average).square()).sqrt(),
            "log_ratio_min": torch.where(
                any_usable, torch.cat([torch.where(keep, flat, inf), pad]).min(), zero
            ),
            "log_ratio_max": torch.where(
                any_usable, torch.cat([torch.where(keep, flat, -inf), -pad]).max(), zero
            ),
            "ess": (first.square() / second.clamp(min=torch.finfo(dtype).tiny)).to(dtype),
            "kl_k1": mean(-d),
            "kl_k2": mean(d.square()) / 2,
            "kl_k3": mean(d.expm1() - d),
            "nonfinite": tokens.nonfinite.sum(),
            "saturated": tokens.saturated.sum(),
            "neutralised": (tokens.mask & ~kept).sum(),
            "tokens": tokens.mask.sum(),
            "sequences": tokens.layout.count_sequences(tokens.mask),
        }
