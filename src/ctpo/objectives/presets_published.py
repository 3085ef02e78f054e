"""Objectives that other papers and trainers run. See `presets` for the units of the knobs and for the symbols.

π and μ are the probabilities of the sampled token under the current policy and under the anchor, d_t = log r_t, and
c_T = Σ_t d_t.
"""

from __future__ import annotations

import dataclasses
import math

from ctpo.objectives import checks
from ctpo.objectives.clipped_mean import ClippedMeanRatio
from ctpo.objectives.divergences import BinaryKL, ProbabilityShift
from ctpo.objectives.objective import Objective
from ctpo.objectives.prefix_budget import PrefixBudget
from ctpo.objectives.presets_shared import compose_parts, smoothing
from ctpo.objectives.ratios import (
    FlippedRatio,
    MinPrefixRatio,
    Ratio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.second_moment import SecondMomentBand
from ctpo.objectives.soft_surrogates import GammaWeight, Pulled, SoftClip, SoftDualClip, SoftGate
from ctpo.objectives.surrogates import ClippedInside, Gated, MinClip, StopGradientWeight
from ctpo.objectives.trust_regions import (
    Both,
    BySign,
    LengthBand,
    LogBand,
    OneSided,
    RatioBand,
    StatisticBand,
    Unbounded,
)


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
    return compose_parts(TokenRatio(), RatioBand(ratio_low, ratio_high, ratio_dual), MinClip(), reduction)


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
    return compose_parts(ratio, RatioBand(ratio_low, ratio_high, ratio_dual), MinClip(), reduction)


def gspo_token(
    ratio_low: float = 3e-4,
    ratio_high: float = 4e-4,
    ratio_dual: float | None = None,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """`gspo` with the value of s and the gradient of the current token, for advantages that differ between tokens.

    arXiv 2507.18071, equations 13 and 14.
    """
    return compose_parts(
        SequenceMeanRatio(), RatioBand(ratio_low, ratio_high, ratio_dual), MinClip(), reduction
    )


def cispo(ratio_low: float = 1.0, ratio_high: float = 4.0, reduction: str = "token-mean") -> Objective:
    """−sg(clip(r_t, 1 − ratio_low, 1 + ratio_high)) A log π_t: weights are truncated, no token loses its gradient.

    "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", arXiv 2506.13585, equations 4 and 5.
    The paper has no lower bound (ratio_low ≥ 1) and does not print its upper one. A ratio of 5 is our choice.
    """
    return compose_parts(TokenRatio(), RatioBand(ratio_low, ratio_high), StopGradientWeight(), reduction)


def minpro(ratio_low: float = 1.0, ratio_high: float = 4.0, reduction: str = "token-mean") -> Objective:
    """−sg(clip(r_t · min_{s<t} r_s, 1 − ratio_low, 1 + ratio_high)) A log π_t, with r_1 alone at t = 1.

    "A Step Back: Prefix Importance Ratio Stabilizes Policy Optimization", arXiv 2601.22718, as second-hand accounts
    have it: CISPO's loss with the smallest ratio of the prefix in its weight. They give no bounds; these are
    `cispo`'s, to be tuned.
    """
    return compose_parts(MinPrefixRatio(), RatioBand(ratio_low, ratio_high), StopGradientWeight(), reduction)


def reinforce(reduction: str = "token-mean") -> Objective:
    """−A log π_t: no ratio and no trust region.

    R. J. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
    Machine Learning 8 (1992).
    """
    return compose_parts(UnitRatio(), Unbounded(), StopGradientWeight(), reduction)


def lusp(
    ratio_low: float = 2e-3,
    ratio_high: float = 2.5e-3,
    ratio_dual: float | None = None,
    reduction: str = "seq-mean-token-sum",
) -> Objective:
    """`gspo` with the loss of each response times its length, so that long responses are not weighed less.

    "Length-Unbiased Sequence Policy Optimization: Revealing and Controlling Response Length Variation in RLVR" (LUSPO),
    arXiv 2602.05261. The band is the one with which trainers ship it.
    """
    return gspo(ratio_low, ratio_high, ratio_dual, reduction)


def fspo(
    log_low: float = 0.025,
    log_high: float = 0.05,
    power: float = 0.5,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """max(−ρ_T A, −clip(ρ_T) A), where ρ_T = e^{c_T} is clipped to e^[−log_low·T^power, log_high·T^power].

    The gradient runs through the whole sequence. "Clip Your Sequences Fairly: Enforcing Length Fairness for
    Sequence-Level RL" (FSPO), arXiv 2509.09177, whose third version has a band that scales as √T. Its first version
    also moves the band with the drift, which this does not. We did not have its numbers: these are `ctpo`'s.
    """
    ratio = SequenceRatio(gradient="through")
    return compose_parts(ratio, LengthBand(log_low, log_high, power), MinClip(), reduction)


def gmpo(log_low: float = 0.4, log_high: float = 0.4, reduction: str = "seq-mean-token-mean") -> Objective:
    """−A e^{(1/T) Σ_t d̃_t}, where d̃ is d clipped to [−log_low, log_high] on the side that A pushes it to.

    d̃ = sign(A)·min(sign(A)·d, sign(A)·clip(d)). The gradient runs through every token that is not clipped.
    "Geometric-Mean Policy Optimization", arXiv 2507.20673.
    """
    ratio = ClippedMeanRatio(LogBand(log_low, log_high))
    band = LogBand(log_low, log_high, statistic=TokenRatio())
    return compose_parts(ratio, band, ClippedInside(), reduction)


def dppo_tv(delta_low: float = 0.2, delta_high: float = 0.2, reduction: str = "token-mean") -> Objective:
    """−keep·r_t A, where tokens with A > 0 are kept if π − μ ≤ delta_high, and with A < 0 if π − μ ≥ −delta_low.

    Bounds are differences of probabilities. The anchor should be the rollout's log-probs. "Rethinking the Trust Region
    in LLM Reinforcement Learning" (DPPO-Binary-TV), arXiv 2602.04879; 0.2 as in SkyRL and prime-rl. verl also cuts the
    weight at 20, and prime-rl adds a pull (see `ipo`).
    """
    band = StatisticBand(delta_low, delta_high, ProbabilityShift())
    return compose_parts(TokenRatio(), OneSided(band), Gated(), reduction)


def dppo_kl(delta_low: float = 0.05, delta_high: float = 0.05, reduction: str = "token-mean") -> Objective:
    """−keep·r_t A, where a token is kept if D ≤ delta, or if it moves against its advantage.

    D = μ ln(μ/π) + (1 − μ) ln((1 − μ)/(1 − π)), in nats; delta_high is for A > 0 and delta_low for A < 0. The anchor
    should be the rollout's log-probs. DPPO-Binary-KL of arXiv 2602.04879; 0.05 is what second-hand configurations use.
    """
    band = StatisticBand(delta_low, delta_high, BinaryKL())
    return compose_parts(TokenRatio(), OneSided(band), Gated(), reduction)


def ipo(delta: float = 0.1, tau: float = 2e-3, reduction: str = "token-mean") -> Objective:
    """−1[|π − μ| ≤ delta] r_t A + (tau/2) d_t²: the gate drops tokens of either sign, and the pull holds for all.

    prime-rl's loss of that name (`trainer/rl/loss.py`), whose `kl_tau` of 1e-3 multiplies d² and not d²/2. Its anchor
    is the rollout's log-probs. It has no paper, and is not "Identity Preference Optimisation".
    """
    checks.number("delta", delta, 0.0)
    band = StatisticBand(delta, delta, ProbabilityShift())
    return compose_parts(TokenRatio(), band, Pulled(Gated(), tau), reduction)


def cppo(
    delta: float = 0.15, w_min: float = 0.8, budget: float = 0.02, reduction: str = "token-mean"
) -> Objective:
    """−keep·r_t A, where tokens are kept if A(r_t − 1) ≤ 0, or if Z_t ≤ min(δ, δ + b·Σ_{s<t} w_s − Σ_{s<t} Z_s).

    Z = w·|π − μ|, w_t = w_min + (1 − w_min)(T − t)/(T − 1), and b is the 0.9 quantile of the response's |π − μ|,
    clamped to [budget, 2·budget]. The anchor should be the rollout's log-probs. "Beyond Uniform Token-Level Trust
    Region in LLM Reinforcement Learning" (CPPO), arXiv 2606.10968, equations 8 to 11 and 22; δ is 0.15 for dense models
    and 0.20 for 30B-A3B. Its code reduces by seq-mean-token-sum-norm, with the generation budget as `norm_length`.
    """
    return compose_parts(TokenRatio(), OneSided(PrefixBudget(delta, w_min, budget)), Gated(), reduction)


def opsm(
    delta: float = 0.5,
    ratio_low: float = 0.2,
    ratio_high: float = 0.28,
    ratio_dual: float | None = 3.0,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """`grpo` without the responses with A < 0 and (1/T) Σ_t (log μ − log π) > delta, in nats per token.

    They stay in the denominators. "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", arXiv
    2512.02556, equation 9 (off-policy sequence mask). The paper gives no delta: TRL suggests 0.5, and slime takes 1e-4.
    """
    checks.number("delta", delta, 0.0)
    gate = OneSided(LogBand(delta, math.inf, statistic=SequenceMeanRatio()))
    base = grpo(ratio_low, ratio_high, ratio_dual, reduction)
    return dataclasses.replace(base, trust_region=Both(base.trust_region, gate))


def sapo(tau_pos: float = 1.0, tau_neg: float = 1.05, reduction: str = "seq-mean-token-mean") -> Objective:
    """−(4/τ) σ(τ(r_t − 1)) A, with τ = tau_pos where A > 0 and tau_neg elsewhere: a gate that fades, and never closes.

    "Soft Adaptive Policy Optimization", arXiv 2511.20347.
    """
    return compose_parts(TokenRatio(), Unbounded(), SoftGate(tau_pos, tau_neg), reduction)


def vespo(
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
    reduction: str = "token-mean",
) -> Objective:
    """−sg(φ(e^{c_T})) A log π_t, where φ(w) = e^λ w^k e^{−λw} fades on both sides and is 1 at w = 1.

    k and λ are the `_pos` knobs where A ≥ 0, and the `_neg` knobs elsewhere. c_T is clamped to [ln 1e-8, 20]. "VESPO:
    Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training", arXiv 2602.10693.
    """
    kernel = GammaWeight(k_pos, lambda_pos, k_neg, lambda_neg)
    return compose_parts(SequenceRatio(), Unbounded(), kernel, reduction)


def topr(level: str = "token", reduction: str = "token-mean") -> Objective:
    """−sg(w) A log π_t, where w = 1 for A ≥ 0, and otherwise min(r_t, 1), or min(e^{c_T}, 1) at level "sequence".

    "Tapered Off-Policy REINFORCE: Stable and Efficient Reinforcement Learning for LLMs", arXiv 2503.14286, equation 8,
    whose weight is that of the sequence; ROLL takes the token's. The paper goes by the sign of the reward, and this by
    that of the advantage. `clip_fraction` counts every token whose weight is not its own ratio.
    """
    ratios: dict[str, Ratio] = {"token": TokenRatio(), "sequence": SequenceRatio()}
    ratio = ratios[checks.choice("level", level, ratios)]
    region = BySign(gain=LogBand(0.0, 0.0), harm=LogBand(math.inf, 0.0))
    return compose_parts(ratio, region, StopGradientWeight(), reduction)


def dispo(
    ratio_low_pos: float = 1.0,
    ratio_high_pos: float = 4.0,
    ratio_low_neg: float = 1.0,
    ratio_high_neg: float = 4.0,
    reduction: str = "token-mean",
) -> Objective:
    """−sg(clip(r_t, 1 − ratio_low, 1 + ratio_high)) A log π_t, with the `_pos` bounds where A ≥ 0, else the `_neg`.

    "DISPO: Enhancing Training Efficiency and Stability in Reinforcement Learning for Large Language Model Mathematical
    Reasoning", arXiv 2602.00983. We did not have its numbers: these are `cispo`'s on both sides, to be tuned.
    """
    bounds = {"ratio_low_pos": ratio_low_pos, "ratio_high_pos": ratio_high_pos}
    bounds |= {"ratio_low_neg": ratio_low_neg, "ratio_high_neg": ratio_high_neg}
    for name, value in bounds.items():
        checks.number(name, value, 0.0)
    region = BySign(RatioBand(ratio_low_pos, ratio_high_pos), RatioBand(ratio_low_neg, ratio_high_neg))
    return compose_parts(TokenRatio(), region, StopGradientWeight(), reduction)


def aspo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.2,
    ratio_dual: float = 3.0,
    reduction: str = "token-mean",
) -> Objective:
    """A < 0: −A max(r_t, 1 − ratio_low). A > 0: −A/r_t, without gradient where r_t > 1 + ratio_high.

    A weight above ratio_dual, r_t or 1/r_t, is replaced by −A·ratio_dual·log π_t, which keeps a gradient. "ASPO:
    Asymmetric Importance Sampling Policy Optimization", arXiv 2510.06062, as in its code (Archer2.0). That code takes
    bounds of 0.4 for tokens of high entropy, which an objective does not see.
    """
    checks.number("ratio_high", ratio_high, 0.0)
    dual = math.log(checks.number("ratio_dual", ratio_dual, 1.0))
    region = BySign(
        gain=LogBand(math.log1p(ratio_high), math.inf, dual), harm=RatioBand(ratio_low, math.inf, ratio_dual)
    )
    return compose_parts(FlippedRatio(), region, SoftDualClip(), reduction)


def ce_gppo(
    ratio_low: float = 0.2,
    ratio_high: float = 0.28,
    beta_low: float = 0.5,
    beta_high: float = 1.0,
    reduction: str = "token-mean",
) -> Objective:
    """−r_t A inside of the band; beyond the bound that A pushes to, −β·bound·A·r_t/sg(r_t), which keeps a gradient.

    The bounds are 1 + ratio_high with beta_high for A > 0, and 1 − ratio_low with beta_low for A < 0. "CE-GPPO:
    Coordinating Entropy via Gradient-Preserving Clipping Policy Optimization in Reinforcement Learning", arXiv
    2509.20712, which takes beta_low from 0.25 to 0.75 and beta_high 1.
    """
    return compose_parts(
        TokenRatio(), RatioBand(ratio_low, ratio_high), SoftClip(beta_low, beta_high), reduction
    )


def m2po(
    moment: float = 0.04,
    ratio_low: float = 0.3,
    ratio_high: float = 0.5,
    ema: float | None = None,
    across_ranks: bool = False,
    reduction: str = "token-mean",
) -> Objective:
    """max(−r_t A, −clip(r_t, e^−τ, e^τ) A), with the largest τ for which the mean of min(d², τ²) is at most `moment`.

    The mean, in nats², is over the minibatch's tokens that move the way of their advantage. The band is never narrower
    than [1 − ratio_low, 1 + ratio_high]. "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data
    on LLMs?" (M2PO), arXiv 2510.01161, after the authors' code. That code takes the next smaller |d| of the batch for
    τ, which clips one token more; this solves for τ. `ema` and `across_ranks`: see `sequence_quantile`.
    """
    band = SecondMomentBand(moment, ratio_low, ratio_high, across_ranks, smoothing=smoothing(ema))
    return compose_parts(TokenRatio(), band, MinClip(), reduction)


def kimi(tau: float = 0.1, reduction: str = "token-mean") -> Objective:
    """−A log π_t + (tau/2) d_t²: REINFORCE with a pull to the anchor, for which k2 estimates the divergence.

    "Kimi k1.5: Scaling Reinforcement Learning with LLMs", arXiv 2501.12599, as ROLL has it. The same gradient as with
    A − tau·sg(d_t) in place of A, which is how K2's is run elsewhere.
    """
    return compose_parts(UnitRatio(), Unbounded(), Pulled(StopGradientWeight(), tau), reduction)
