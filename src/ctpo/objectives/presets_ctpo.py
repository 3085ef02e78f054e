"""CTPO's own presets and their variants: ratios of a prefix, of a turn, or of the whole response.

ρ_t = Π_{s≤t} r_s, and c_t = log ρ_t. See `presets` for the units of the knobs and for the other symbols.
"""

from __future__ import annotations

import dataclasses
import math

from ctpo.objectives import checks
from ctpo.objectives.calibration import band_bases
from ctpo.objectives.objective import Objective
from ctpo.objectives.presets_shared import compose_parts, smoothing
from ctpo.objectives.quantile_gate import QuantileGate
from ctpo.objectives.ratios import (
    CumulativeRatio,
    DecayedRatio,
    PerTurnRatio,
    PrefixMeanRatio,
    SequenceRatio,
)
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.soft_surrogates import GammaWeight
from ctpo.objectives.surrogates import Gated, MinClip, StopGradientWeight, Surrogate
from ctpo.objectives.trust_regions import LogBand, PerTurnRegion, RatioBand, Unbounded


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
    return compose_parts(CumulativeRatio(), LogBand(log_low, log_high, log_dual, power), MinClip(), reduction)


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
    checks.finite("length", length)
    plain = LogBand(log_low, log_high, log_dual)
    scale = 2 / 3 * math.sqrt(length)
    dual = None if plain.log_dual is None else plain.log_dual * scale
    return ctpo(plain.log_low * scale, plain.log_high * scale, dual, 0.0, reduction)


def ctpo_calibrated(
    scale: float = 0.28,
    power: float = 0.5,
    share: float = 0.1,
    centre: float = 0.0,
    dual: bool = True,
    log_drift: float = 0.0,
    reduction: str = "token-mean",
) -> Objective:
    """`ctpo` with the band that `calibrate` proposes if log ρ_t ~ N(centre·t^power − log_drift·t, (scale·t^power)²).

    A share of the tokens passes each bound at every t. `scale` and `centre` are in nats, `log_drift` in nats per
    token: it lets the band follow a mean that falls as t while the spread grows as √t. With `dual`, the dual clip
    lies at the upper bound. Measure scale, power and centre with `calibrate`: the default scale is that of one small
    prototype, where log ρ_t had a standard deviation of about 2 after 50 tokens. Ours.
    """
    low, high = band_bases(scale, share, centre)
    band = LogBand(low, high, high if checks.flag("dual", dual) else None, power, log_drift=log_drift)
    return compose_parts(CumulativeRatio(), band, MinClip(), reduction)


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
    return compose_parts(PrefixMeanRatio(), LogBand(log_low, log_high, log_dual, power), MinClip(), reduction)


def ctpo_prefix_gradient(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = 0.5,
    reduction: str = "token-mean",
) -> Objective:
    """`ctpo` differentiated through the whole prefix: the gradient of ρ_t reaches every token s ≤ t. Ours."""
    ratio = CumulativeRatio(gradient="through")
    return compose_parts(ratio, LogBand(log_low, log_high, log_dual, power), MinClip(), reduction)


def sequence(
    ratio_low: float = 0.5,
    ratio_high: float = 4.0,
    ratio_dual: float | None = 5.0,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """max(−ρ_T A, −clip(ρ_T) A), where ρ_T = Π_{s≤T} r_s is clipped to [1 − ratio_low, 1 + ratio_high].

    The exact correction of a whole response, at each of its tokens. The band is ctpo-fixed's, [0.5, 5].
    """
    return compose_parts(SequenceRatio(), RatioBand(ratio_low, ratio_high, ratio_dual), MinClip(), reduction)


def ctpo_vespo(
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
    reduction: str = "token-mean",
) -> Objective:
    """−sg(φ(ρ_t)) A log π_t, where φ = e^λ ρ_t^k e^{−λρ_t}: VESPO's kernel on the prefix product, not on the sequence.

    k and λ are the `_pos` knobs where A ≥ 0, and the `_neg` knobs elsewhere. c_t is clamped to [ln 1e-8, 20]. Ours,
    from arXiv 2605.07331 and arXiv 2602.10693.
    """
    kernel = GammaWeight(k_pos, lambda_pos, k_neg, lambda_neg)
    return compose_parts(CumulativeRatio(), Unbounded(), kernel, reduction)


def ctpo_turn(
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = 0.5,
    reduction: str = "token-mean",
) -> Objective:
    """`ctpo` whose product begins anew at each turn: ρ_t = Π r_s over the tokens s ≤ t of the turn of t.

    t in the band counts the sampled tokens of the turn. A call needs `turn_ids`, the turn of each token. Drift of
    earlier turns then neither weighs nor clips a token, at the price of a bias: the state at the start of a turn is
    taken as it came. Ours, from arXiv 2605.07331.
    """
    band = PerTurnRegion(LogBand(log_low, log_high, log_dual, power))
    return compose_parts(PerTurnRatio(CumulativeRatio()), band, MinClip(), reduction)


def ctpo_decay(
    decay: float = 0.98,
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = 0.5,
    surrogate: str = "min-clip",
    reduction: str = "token-mean",
) -> Objective:
    """`ctpo` with a product that forgets: log ρ_t = c_t = decay · c_{t−1} + d_t over the sampled tokens.

    decay 1 is `ctpo` and decay 0 the token ratio. `surrogate` "min-clip" is that of `ctpo`. "stop-gradient" is
    −sg(clip(ρ_t)) A log π_t: the bounds only truncate the weight, every token keeps its gradient, and there is no
    pull to the anchor; `log_dual` then plays no part. Ours, from arXiv 2605.07331 and arXiv 2506.13585.
    """
    kinds: dict[str, Surrogate] = {"min-clip": MinClip(), "stop-gradient": StopGradientWeight()}
    chosen = kinds[checks.choice("surrogate", surrogate, kinds)]
    band = LogBand(log_low, log_high, log_dual, power)
    if surrogate == "stop-gradient":
        band = dataclasses.replace(band, log_dual=None)
    return compose_parts(DecayedRatio(decay), band, chosen, reduction)


def sequence_quantile(
    q: float = 0.2,
    ema: float | None = None,
    across_ranks: bool = False,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """−1[|c_T| ≤ τ] ρ_T A, where c_T = log ρ_T and τ is the 1 − q quantile of |c_T| over the minibatch's tokens.

    Experimental, ours. `ema` averages τ over calls with that decay; `across_ranks` pools data-parallel ranks.
    """
    gate = QuantileGate(q, across_ranks=across_ranks, smoothing=smoothing(ema))
    return compose_parts(SequenceRatio(), gate, Gated(), reduction)


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
    gate = QuantileGate(q, by_position=True, across_ranks=across_ranks, smoothing=smoothing(ema))
    objective = compose_parts(CumulativeRatio(gradient="through"), gate, Gated(), reduction)
    return dataclasses.replace(objective, reduction=Reduction(reduction, length_power=-0.5))
