"""Named objectives. A preset is a few lines that compose parts; its knobs keep its paper's convention.

Equations, sources and what is known of each: docs/objectives.md.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Final

from ctpo.objectives import checks
from ctpo.objectives.calibration import band_bases
from ctpo.objectives.objective import Objective
from ctpo.objectives.old_names import current_knobs
from ctpo.objectives.quantile_gate import QuantileGate, Smoothing
from ctpo.objectives.ratios import (
    CumulativeRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import Gated, MinClip, StopGradientWeight
from ctpo.objectives.trust_regions import LogBand, RatioBand, Unbounded


def ctpo(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = 0.5,
    reduction: str = "token-mean",
) -> Objective:
    """ρ_t = Π_{s≤t} r_s, min-clipped to e^[−log_low·t^power, log_high·t^power], dual clip e^(log_dual·t^power).

    token-mean is how the published implementation runs; the paper's formula is seq-mean-token-mean.
    """
    return Objective(
        ratio=CumulativeRatio(),
        trust_region=LogBand(log_low, log_high, log_dual, power),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def ctpo_fixed(
    log_low: float = math.log(2),
    log_high: float = math.log(5),
    log_dual: float | None = math.log(5),
    reduction: str = "token-mean",
) -> Objective:
    """CTPO with a band that does not widen; log-space knobs, by default the paper's ablation [0.5, 5]."""
    return ctpo(log_low, log_high, log_dual, 0.0, reduction)


def ctpo_fixed_matched(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    length: int = 8000,
    reduction: str = "token-mean",
) -> Objective:
    """CTPO with a fixed band as wide as ctpo's is on average over 1..length: bases times (2/3)·√length.

    Separates the shape of the band from its width. (2/3)·√T is the mean of √t up to 0.5/√T.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length: {length!r} must be a whole number of tokens, at least 1.")
    scale = 2 / 3 * math.sqrt(length)
    return ctpo(
        log_low * scale, log_high * scale, None if log_dual is None else log_dual * scale, 0.0, reduction
    )


def ctpo_calibrated(
    scale: float = 0.28,
    power: float = 0.5,
    share: float = 0.1,
    centre: float = 0.0,
    dual: bool = True,
    reduction: str = "token-mean",
) -> Objective:
    """CTPO in the band that `calibrate` proposes for log ρ_t ~ N(centre·t^power, (scale·t^power)²).

    Each bound is passed by a share of the tokens at every t; `dual` puts the dual bound at the upper one. Measure
    scale, power and centre with `calibrate`: the default scale is that of one small prototype (a spread of about 2
    after 50 tokens).
    """
    low, high = band_bases(scale, share, centre)
    return ctpo(low, high, high if dual else None, power, reduction)


def ctpo_geomean(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = -0.5,
    reduction: str = "token-mean",
) -> Objective:
    """CTPO with the geometric mean of the prefix, (Π_{s≤t} r_s)^{1/t}, in a band that narrows as t^−0.5."""
    return Objective(
        ratio=PrefixMeanRatio(),
        trust_region=LogBand(log_low, log_high, log_dual, power),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def ctpo_prefix_gradient(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = 0.5,
    reduction: str = "token-mean",
) -> Objective:
    """CTPO differentiated through the whole prefix: the gradient of ρ_t reaches every token s ≤ t."""
    return Objective(
        ratio=CumulativeRatio(gradient="through"),
        trust_region=LogBand(log_low, log_high, log_dual, power),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def sequence(
    ratio_low: float = 0.5,
    ratio_high: float = 4.0,
    ratio_dual: float | None = 5.0,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """ρ_T = Π_{s≤T} r_s for every token, min-clipped to [1 − ratio_low, 1 + ratio_high]: ctpo-fixed's band [0.5, 5]."""
    return Objective(
        ratio=SequenceRatio(),
        trust_region=RatioBand(ratio_low, ratio_high, ratio_dual),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def ppo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.2,
    ratio_dual: float | None = None,
    reduction: str = "token-mean",
) -> Objective:
    """r_t min-clipped to [1 − ratio_low, 1 + ratio_high]; `ratio_dual` adds the dual clip (usually 3)."""
    return Objective(
        ratio=TokenRatio(),
        trust_region=RatioBand(ratio_low, ratio_high, ratio_dual),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def grpo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.28,
    ratio_dual: float | None = 3.0,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """PPO's term with GRPO's mean over sequences of the mean over tokens.

    The band is the one CTPO's paper runs its GRPO baseline with; GRPO's own is symmetric, without dual clip
    and with a KL penalty (`ratio_high=0.2, ratio_dual=None`, and 0.04 times `penalties.kl_penalty`). Its paper gives
    the 0.04 and no band; 0.2 is what implementations take.
    """
    return ppo(ratio_low, ratio_high, ratio_dual, reduction)


def dapo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.28,
    ratio_dual: float | None = None,
    reduction: str = "token-mean",
) -> Objective:
    """PPO's term with a higher upper bound and the mean over all tokens."""
    return ppo(ratio_low, ratio_high, ratio_dual, reduction)


def dr_grpo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.2,
    ratio_dual: float | None = None,
    reduction: str = "seq-mean-token-sum-norm",
) -> Objective:
    """PPO's term summed over tokens and divided by a constant (`norm_length`), so that length has no say.

    Pair it with `advantages.dr_grpo`. The paper's formula has no constant (norm_length = 1); its code divides
    by the generation budget.
    """
    return ppo(ratio_low, ratio_high, ratio_dual, reduction)


def gspo(
    ratio_low: float = 3e-4,
    ratio_high: float = 4e-4,
    ratio_dual: float | None = None,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """s = (Π r_s)^{1/T}, min-clipped to [1 − ratio_low, 1 + ratio_high], differentiated through the whole sequence."""
    return Objective(
        ratio=SequenceMeanRatio(gradient="through"),
        trust_region=RatioBand(ratio_low, ratio_high, ratio_dual),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def gspo_token(
    ratio_low: float = 3e-4,
    ratio_high: float = 4e-4,
    ratio_dual: float | None = None,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """GSPO with the value of s and the gradient of the current token, for advantages that differ by token."""
    return Objective(
        ratio=SequenceMeanRatio(),
        trust_region=RatioBand(ratio_low, ratio_high, ratio_dual),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def cispo(ratio_low: float = 1.0, ratio_high: float = 4.0, reduction: str = "token-mean") -> Objective:
    """−sg(clip(r_t, 1 − ratio_low, 1 + ratio_high)) A log π_t: weights are truncated, no token loses its gradient.

    The paper sets no lower bound (ratio_low ≥ 1) and does not print its upper one; 5 (ratio_high = 4) is our choice.
    """
    return Objective(
        ratio=TokenRatio(),
        trust_region=RatioBand(ratio_low, ratio_high),
        surrogate=StopGradientWeight(),
        reduction=Reduction(reduction),
    )


def minpro(ratio_low: float = 1.0, ratio_high: float = 4.0, reduction: str = "token-mean") -> Objective:
    """−sg(clip(r_t · min_{s<t} r_s, 1 − ratio_low, 1 + ratio_high)) A log π_t, with r_1 alone at t = 1.

    CISPO's loss with the prefix's smallest ratio in its weight, as second-hand accounts of the paper have it; they
    give no bounds, and ours are `cispo`'s, to be tuned.
    """
    return Objective(
        ratio=MinPrefixRatio(),
        trust_region=RatioBand(ratio_low, ratio_high),
        surrogate=StopGradientWeight(),
        reduction=Reduction(reduction),
    )


def reinforce(reduction: str = "token-mean") -> Objective:
    """−A log π_t: no ratio, no region."""
    return Objective(
        ratio=UnitRatio(),
        trust_region=Unbounded(),
        surrogate=StopGradientWeight(),
        reduction=Reduction(reduction),
    )


def sequence_quantile(
    q: float = 0.2,
    ema: float | None = None,
    across_ranks: bool = False,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """Experimental. −1[|c_T| ≤ τ] ρ_T A with τ the (1 − q) quantile of |c_T| over the mini-batch's tokens."""
    return Objective(
        ratio=SequenceRatio(),
        trust_region=QuantileGate(q, across_ranks=across_ranks, smoothing=_smoothing(ema)),
        surrogate=Gated(),
        reduction=Reduction(reduction),
    )


def prefix_quantile(
    q: float = 0.2,
    ema: float | None = None,
    across_ranks: bool = False,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """Experimental. −T^−½ 1[|c_t|/σ_t ≤ τ] ρ_t A, differentiated through the whole prefix.

    σ_t is the root mean square of c_t over the mini-batch's rows at position t, τ the (1 − q) quantile of
    |c_t|/σ_t.
    """
    return Objective(
        ratio=CumulativeRatio(gradient="through"),
        trust_region=QuantileGate(q, by_position=True, across_ranks=across_ranks, smoothing=_smoothing(ema)),
        surrogate=Gated(),
        reduction=Reduction(reduction, length_power=-0.5),
    )


def _smoothing(ema: float | None) -> Smoothing | None:
    return None if ema is None else Smoothing(ema)


_PRESETS: Final[dict[str, Callable[..., Objective]]] = {
    "ctpo": ctpo,
    "ctpo-fixed": ctpo_fixed,
    "ctpo-fixed-matched": ctpo_fixed_matched,
    "ctpo-calibrated": ctpo_calibrated,
    "ctpo-geomean": ctpo_geomean,
    "ctpo-prefix-gradient": ctpo_prefix_gradient,
    "sequence": sequence,
    "ppo": ppo,
    "grpo": grpo,
    "dapo": dapo,
    "dr-grpo": dr_grpo,
    "gspo": gspo,
    "gspo-token": gspo_token,
    "cispo": cispo,
    "minpro": minpro,
    "reinforce": reinforce,
    "sequence-quantile": sequence_quantile,
    "prefix-quantile": prefix_quantile,
}

_SHARED: Final[dict[str, Any]] = {
    "norm_length": 1.0,
    "on_bad": "neutralise",
    "backend": "auto",
}
"""Knobs that every preset takes: `norm_length` (tokens) of `Reduction`, and those of `Objective`."""

_PENALTIES: Final = {
    "kl_coef": "kl_penalty(logps, ref_logps)",
    "kl_estimator": "kl_penalty(logps, ref_logps, estimator)",
    "entropy_coef": "entropy_penalty(entropies)",
}
"""Knobs that an objective no longer has, and the function of `ctpo.objectives.penalties` that replaces each."""


def preset_names() -> tuple[str, ...]:
    """The names that `preset` knows."""
    return tuple(_PRESETS)


def preset_defaults(name: str) -> dict[str, Any]:
    """The knobs of a preset with their default values, its own knobs first.

    Raises:
        ValueError: unknown preset.
    """
    builder = _PRESETS[checks.choice("preset", name, _PRESETS)]
    own = {key: parameter.default for key, parameter in inspect.signature(builder).parameters.items()}
    return {**own, **_SHARED}


def preset(name: str, **overrides: Any) -> Objective:
    """The objective of that name, with some of its knobs changed.

    Example: `preset("grpo", reduction="token-mean")`.

    Args:
        name: one of `preset_names()`.
        overrides: knobs of that preset, see `preset_defaults(name)`.

    Raises:
        ValueError: unknown preset or knob (the message gives the nearest match), or a value out of range.
    """
    known = preset_defaults(name)
    overrides = current_knobs(overrides, known)
    for key in overrides:
        if key in _PENALTIES:
            raise ValueError(
                f"{key}: an objective holds no penalty; use loss + beta * objective.reduce("
                f"{_PENALTIES[key]}, response_mask, num_tokens=...) with ctpo.objectives.penalties."
            )
        checks.choice(f"override of preset {name!r}", key, known)
    knobs = {**known, **overrides}
    shared = {key: knobs.pop(key) for key in _SHARED}
    objective = _PRESETS[name](**knobs)
    reduction = dataclasses.replace(objective.reduction, norm_length=shared.pop("norm_length"))
    return dataclasses.replace(objective, reduction=reduction, **shared)
