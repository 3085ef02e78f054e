"""Named objectives. A preset is a few lines that compose the four parts, with the settings of its paper.

Knobs carry their unit. `log_low`, `log_high` and `log_dual` bound a log ratio, in nats, times t^power; t counts the
sampled tokens so far. `ratio_low` and `ratio_high` are distances from a ratio of 1, and `ratio_dual` is a ratio.
r_t = π_θ(a_t|s_t) / π_old(a_t|s_t) is the ratio of one token, A the advantage, T a response's length in tokens, and
sg stops the gradient. Formulas are losses of one token. docs/objectives.md says when to use which.

`ctpo.training` reads this file without importing it, so defaults are spelled out in the signatures.
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
from ctpo.objectives.quantile_gate import QuantileGate, Smoothing
from ctpo.objectives.ratios import (
    CumulativeRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    Ratio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import Gated, MinClip, StopGradientWeight, Surrogate
from ctpo.objectives.trust_regions import LogBand, RatioBand, TrustRegion, Unbounded
from ctpo.old_names import current_backend, current_knobs


def ctpo(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = 0.5,
    reduction: str = "token-mean",
) -> Objective:
    """max(−ρ_t A, −clip(ρ_t) A), where ρ_t = Π_{s≤t} r_s is clipped to e^[−log_low·t^power, log_high·t^power].

    For A < 0 the loss is at most −A e^(log_dual·t^power), unless `log_dual` is None.

    "Rethinking Importance Sampling in LLM Policy Optimization: A Cumulative Token Perspective", arXiv 2605.07331.
    Its formula is reduced by seq-mean-token-mean; its code runs token-mean, the default here.
    """
    return _objective(CumulativeRatio(), LogBand(log_low, log_high, log_dual, power), MinClip(), reduction)


def ctpo_fixed(
    log_low: float = math.log(2),
    log_high: float = math.log(5),
    log_dual: float | None = math.log(5),
    reduction: str = "token-mean",
) -> Objective:
    """`ctpo` with a band that does not widen: ρ_t is clipped to e^[−log_low, log_high], by default [0.5, 5].

    An ablation of arXiv 2605.07331.
    """
    return ctpo(log_low, log_high, log_dual, 0.0, reduction)


def ctpo_fixed_matched(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    length: int = 8000,
    reduction: str = "token-mean",
) -> Objective:
    """`ctpo` with a fixed band as wide as ctpo's is on average over 1..length: the bounds times (2/3)·√length.

    It separates the shape of the band from its width. (2/3)·√T is the mean of √t over 1..T, up to 0.5/√T. Ours.
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
    """`ctpo` with the band that `calibrate` proposes if log ρ_t ~ N(centre·t^power, (scale·t^power)²).

    A share of the tokens passes each bound at every t. `scale` and `centre` are in nats. With `dual`, the dual clip
    lies at the upper bound. Measure scale, power and centre with `calibrate`: the default scale is that of one small
    prototype, where log ρ_t had a standard deviation of about 2 after 50 tokens. Ours.
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
    """`ctpo` with the geometric mean of the prefix, (Π_{s≤t} r_s)^(1/t), in a band that narrows as t^−0.5.

    In the code of arXiv 2605.07331.
    """
    return _objective(PrefixMeanRatio(), LogBand(log_low, log_high, log_dual, power), MinClip(), reduction)


def ctpo_prefix_gradient(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = 0.5,
    reduction: str = "token-mean",
) -> Objective:
    """`ctpo` differentiated through the whole prefix: the gradient of ρ_t reaches every token s ≤ t. Ours."""
    ratio = CumulativeRatio(gradient="through")
    return _objective(ratio, LogBand(log_low, log_high, log_dual, power), MinClip(), reduction)


def sequence(
    ratio_low: float = 0.5,
    ratio_high: float = 4.0,
    ratio_dual: float | None = 5.0,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """max(−ρ_T A, −clip(ρ_T) A), where ρ_T = Π_{s≤T} r_s is clipped to [1 − ratio_low, 1 + ratio_high].

    The exact correction of a whole response, at each of its tokens. The band is ctpo-fixed's, [0.5, 5].
    """
    return _objective(SequenceRatio(), RatioBand(ratio_low, ratio_high, ratio_dual), MinClip(), reduction)


def ppo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.2,
    ratio_dual: float | None = None,
    reduction: str = "token-mean",
) -> Objective:
    """max(−r_t A, −clip(r_t, 1 − ratio_low, 1 + ratio_high) A); for A < 0 at most −A ratio_dual, usually 3.

    "Proximal Policy Optimization Algorithms", arXiv 1707.06347, equation 7. Dual clip: "Mastering Complex Control in
    MOBA Games with Deep Reinforcement Learning", arXiv 1912.09729, equation 5.
    """
    return _objective(TokenRatio(), RatioBand(ratio_low, ratio_high, ratio_dual), MinClip(), reduction)


def grpo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.28,
    ratio_dual: float | None = 3.0,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """PPO's loss of a token, with the mean over sequences of the mean over tokens.

    "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", arXiv 2402.03300, equation 3.
    The default band is the one with which CTPO's paper runs its GRPO baseline. GRPO's own is symmetric and has no dual
    clip, and it adds 0.04 times `penalties.kl_penalty`. Its paper gives no width; implementations take 0.2.
    """
    return ppo(ratio_low, ratio_high, ratio_dual, reduction)


def dapo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.28,
    ratio_dual: float | None = None,
    reduction: str = "token-mean",
) -> Objective:
    """PPO's loss of a token with a higher upper bound, and the mean over all tokens.

    "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arXiv 2503.14476, equation 8 and section 4.1.
    """
    return ppo(ratio_low, ratio_high, ratio_dual, reduction)


def dr_grpo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.2,
    ratio_dual: float | None = None,
    reduction: str = "seq-mean-token-sum-norm",
) -> Objective:
    """PPO's loss of a token, summed over tokens and divided by a constant, so that length has no say.

    "Understanding R1-Zero-Like Training: A Critical Perspective", arXiv 2503.20783, section 3.2. Use it with
    `advantages.dr_grpo`. The paper's formula has no constant (`norm_length` 1); its code divides by the generation
    budget.
    """
    return ppo(ratio_low, ratio_high, ratio_dual, reduction)


def gspo(
    ratio_low: float = 3e-4,
    ratio_high: float = 4e-4,
    ratio_dual: float | None = None,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """max(−sA, −clip(s) A), where s = (Π_{t≤T} r_t)^(1/T) is clipped to [1 − ratio_low, 1 + ratio_high].

    The gradient runs through the whole sequence. "Group Sequence Policy Optimization", arXiv 2507.18071, equations 5
    to 7; the band is that of section 5.1.
    """
    ratio = SequenceMeanRatio(gradient="through")
    return _objective(ratio, RatioBand(ratio_low, ratio_high, ratio_dual), MinClip(), reduction)


def gspo_token(
    ratio_low: float = 3e-4,
    ratio_high: float = 4e-4,
    ratio_dual: float | None = None,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """`gspo` with the value of s and the gradient of the current token, for advantages that differ between tokens.

    arXiv 2507.18071, equations 13 and 14.
    """
    return _objective(SequenceMeanRatio(), RatioBand(ratio_low, ratio_high, ratio_dual), MinClip(), reduction)


def cispo(ratio_low: float = 1.0, ratio_high: float = 4.0, reduction: str = "token-mean") -> Objective:
    """−sg(clip(r_t, 1 − ratio_low, 1 + ratio_high)) A log π_t: weights are truncated, no token loses its gradient.

    "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", arXiv 2506.13585, equations 4 and 5.
    The paper has no lower bound (ratio_low ≥ 1) and does not print its upper one. A ratio of 5 is our choice.
    """
    return _objective(TokenRatio(), RatioBand(ratio_low, ratio_high), StopGradientWeight(), reduction)


def minpro(ratio_low: float = 1.0, ratio_high: float = 4.0, reduction: str = "token-mean") -> Objective:
    """−sg(clip(r_t · min_{s<t} r_s, 1 − ratio_low, 1 + ratio_high)) A log π_t, with r_1 alone at t = 1.

    "A Step Back: Prefix Importance Ratio Stabilizes Policy Optimization", arXiv 2601.22718, as second-hand accounts
    have it: CISPO's loss with the smallest ratio of the prefix in its weight. They give no bounds; these are
    `cispo`'s, to be tuned.
    """
    return _objective(MinPrefixRatio(), RatioBand(ratio_low, ratio_high), StopGradientWeight(), reduction)


def reinforce(reduction: str = "token-mean") -> Objective:
    """−A log π_t: no ratio and no trust region.

    R. J. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
    Machine Learning 8 (1992).
    """
    return _objective(UnitRatio(), Unbounded(), StopGradientWeight(), reduction)


def sequence_quantile(
    q: float = 0.2,
    ema: float | None = None,
    across_ranks: bool = False,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """−1[|c_T| ≤ τ] ρ_T A, where c_T = log ρ_T and τ is the 1 − q quantile of |c_T| over the minibatch's tokens.

    Experimental, ours. `ema` averages τ over calls with that decay; `across_ranks` pools data-parallel ranks.
    """
    gate = QuantileGate(q, across_ranks=across_ranks, smoothing=_smoothing(ema))
    return _objective(SequenceRatio(), gate, Gated(), reduction)


def prefix_quantile(
    q: float = 0.2,
    ema: float | None = None,
    across_ranks: bool = False,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """−T^−½ 1[|c_t|/σ_t ≤ τ] ρ_t A, where c_t = log ρ_t, differentiated through the whole prefix.

    σ_t is the root mean square of c_t over the minibatch's rows at position t, and τ the 1 − q quantile of |c_t|/σ_t.
    Experimental, ours. `ema` and `across_ranks`: see `sequence_quantile`.
    """
    gate = QuantileGate(q, by_position=True, across_ranks=across_ranks, smoothing=_smoothing(ema))
    objective = _objective(CumulativeRatio(gradient="through"), gate, Gated(), reduction)
    return dataclasses.replace(objective, reduction=Reduction(reduction, length_power=-0.5))


def _objective(ratio: Ratio, region: TrustRegion, surrogate: Surrogate, reduction: str) -> Objective:
    return Objective(ratio=ratio, trust_region=region, surrogate=surrogate, reduction=Reduction(reduction))


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
    shared["backend"] = current_backend(shared["backend"], 3)
    objective = _PRESETS[name](**knobs)
    reduction = dataclasses.replace(objective.reduction, norm_length=shared.pop("norm_length"))
    return dataclasses.replace(objective, reduction=reduction, **shared)
