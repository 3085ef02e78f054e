"""What a call says about itself: detached 0-d tensors on the inputs' device, without synchronisation."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ctpo.objectives.layouts.padded import Layout
from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.surrogates import TokenTerms
from ctpo.objectives.tokens import Tokens

Number = Tensor | float


@dataclass(slots=True)
class Sums:
    """Sums over the tokens of a call, from which every figure follows; chunks of a call add up.

    x is the weighing log ratio after truncation, d the token's log ratio.
    """

    tokens: Number = 0.0
    """Tokens under the mask."""
    sequences: Number = 0.0
    """Sequences with a token under the mask."""
    usable: Number = 0.0
    nonfinite: Number = 0.0
    saturated: Number = 0.0
    high: Number = 0.0
    low: Number = 0.0
    dual: Number = 0.0
    x: Number = 0.0
    xx: Number = 0.0
    weight: Number = 0.0
    """Σ e^x."""
    weight_squared: Number = 0.0
    d: Number = 0.0
    dd: Number = 0.0
    k3: Number = 0.0
    """Σ (e^d − 1 − d)."""
    lowest: Number = torch.inf
    highest: Number = -torch.inf


def over_shards(sums: Sums, layout: Layout) -> Sums:
    """The same sums over all the processes that share the sequences (two small collectives when sharded)."""
    names = [f.name for f in fields(Sums) if f.name not in ("lowest", "highest")]
    added = layout.sum_shards(torch.stack([torch.as_tensor(getattr(sums, name)) for name in names]))
    extremes = torch.stack([-torch.as_tensor(sums.lowest), torch.as_tensor(sums.highest)])
    lowest, highest = layout.max_shards(extremes).unbind()
    return Sums(**dict(zip(names, added.unbind(), strict=True)), lowest=-lowest, highest=highest)


def finalise(sums: Sums, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Figures of one call.

    Returns:
        clip_fraction: (high + low) / tokens, as the published implementation counts; the dual clip stands
            apart.
        clip_fraction_high, clip_fraction_low, clip_fraction_dual: its parts.
        log_ratio_mean, log_ratio_std, log_ratio_min, log_ratio_max: of the weighing log ratio; population
            std.
        ess: (Σρ)² / (n Σρ²), effective sample size as a share of the usable tokens.
        kl_k1, kl_k2, kl_k3: estimates of KL(old ‖ new) from tokens of the old policy, with d = log π_θ − log
        π_old:
            means of −d, d²/2 and e^d − 1 − d.
        nonfinite, saturated, neutralised: counts of tokens under the mask whose log-probs could not be used.
        tokens, sequences: what the default denominators count.
    """
    if not isinstance(sums.tokens, Tensor):
        figures = _figures(sums)  # Python numbers, stored at once
        values = torch.tensor(list(figures.values()), dtype=dtype, device=device).unbind()
        return dict(zip(figures, values, strict=True))
    wide = prefix_dtype(device)

    def scalar(value: Number) -> Tensor:
        # A fill, not a copy from the host, where the figure is a number.
        return (
            value.to(wide) if isinstance(value, Tensor) else torch.full((), value, dtype=wide, device=device)
        )

    figures = _figures(Sums(**{f.name: scalar(getattr(sums, f.name)) for f in fields(Sums)}))
    return {name: torch.as_tensor(value).to(dtype) for name, value in figures.items()}


def _figures(s: Sums) -> dict[str, Number]:
    """The figures, numbers or tensors as the sums are."""
    n_tokens, n = _at_least(s.tokens, 1.0), _at_least(s.usable, 1.0)
    mean = s.x / n
    return {
        "clip_fraction": (s.high + s.low) / n_tokens,
        "clip_fraction_high": s.high / n_tokens,
        "clip_fraction_low": s.low / n_tokens,
        "clip_fraction_dual": s.dual / n_tokens,
        "log_ratio_mean": mean,
        "log_ratio_std": _at_least(s.xx / n - mean * mean, 0.0) ** 0.5,
        "log_ratio_min": _if_any(s.usable, s.lowest),
        "log_ratio_max": _if_any(s.usable, s.highest),
        "ess": s.weight**2 / (n * (s.weight_squared + (s.weight_squared == 0))),
        "kl_k1": -s.d / n,
        "kl_k2": s.dd / (2 * n),
        "kl_k3": s.k3 / n,
        "nonfinite": s.nonfinite,
        "saturated": s.saturated,
        "neutralised": s.nonfinite + s.saturated,
        "tokens": s.tokens,
        "sequences": s.sequences,
    }


def _at_least(value: Number, least: float) -> Number:
    return value.clamp(min=least) if isinstance(value, Tensor) else max(value, least)


def _if_any(count: Number, value: Number) -> Number:
    if isinstance(count, Tensor) and isinstance(value, Tensor):
        return torch.where(count > 0, value, torch.zeros_like(value))
    return value if count > 0 else 0.0


@torch.no_grad()
def summarise(tokens: Tokens, log_weight: Tensor, terms: TokenTerms) -> dict[str, Tensor]:
    """Figures of a composed call; `log_weight` is truncated and of the tokens' shape."""
    kept = tokens.kept
    wide = prefix_dtype(kept.device)
    x, d = log_weight.to(wide), tokens.log_ratio.to(wide)
    zero, inf = d.new_zeros(()), d.new_full((1,), torch.inf)

    def count(flags: Tensor) -> Tensor:
        return flags.sum().to(wide)

    x_kept = torch.where(kept, x, zero)
    # e^80 squared overflows float32, not float64.
    rho = torch.where(kept, x.exp(), zero)
    sums = Sums(
        tokens=count(tokens.mask),
        usable=count(kept),
        nonfinite=count(tokens.nonfinite),
        saturated=count(tokens.saturated),
        high=count(terms.high & kept),
        low=count(terms.low & kept),
        dual=count(terms.dual & kept),
        x=x_kept.sum(),
        xx=x_kept.square().sum(),
        weight=rho.sum(),
        weight_squared=rho.square().sum(),
        d=d.sum(),
        dd=d.square().sum(),
        k3=(d.expm1() - d).sum(),
        lowest=torch.cat([torch.where(kept, x, inf).reshape(-1), inf]).min(),
        highest=torch.cat([torch.where(kept, x, -inf).reshape(-1), -inf]).max(),
    )
    if not tokens.layout.differentiable:
        sums = over_shards(sums, tokens.layout)
    sums.sequences = tokens.layout.count_sequences(tokens.mask)
    return finalise(sums, log_weight.dtype, kept.device)
