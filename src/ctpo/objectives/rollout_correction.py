"""Importance sampling correction for the difference between a rollout engine and the trainer.

An engine and a trainer disagree on the log-probs of the same policy, because of kernels, precision or staleness. If the
ratio is taken against the old policy as the trainer recomputes it, a separate weight corrects the difference. If it is
taken against the engine's log-probs, nothing is left to correct, and a product accumulates the difference.

A correction has three parts that know nothing of each other: a weight for each token, any number of gates that reject
tokens, and a veto. δ_t = log π_old − log π_rollout is the difference of one token, in nats. `named_corrections` has
those of the field by name.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.numerics import SATURATION, compute_dtype, prefix_dtype
from ctpo.objectives.tokens import Tokens, as_bool, sanitise
from ctpo.old_names import current_criterion, old_keywords

_PROBABILITY_MARGIN: Final = 1e-6
"""Binary KL divergences take probabilities between this and 1 minus this. Float32 cannot tell 1 − p from 0 much closer
to 1, and the divergence of a certain token would be infinite."""

LEVELS: Final = ("token", "sum", "mean", "max", "segment")
"""What a statistic is taken over: each token alone, or the sum, mean or maximum over the response's sampled tokens, or
the mean over those of the token's turn."""
ACTIONS: Final = ("truncate", "reject")
DENOMINATORS: Final = ("all", "kept")
ANCHORS: Final = ("old", "rollout")


def _ratio(tokens: Tokens) -> Tensor:
    return tokens.log_ratio


def _k1(tokens: Tokens) -> Tensor:
    return -tokens.log_ratio


def _k2(tokens: Tokens) -> Tensor:
    return tokens.log_ratio.square() / 2


def _k3(tokens: Tokens) -> Tensor:
    return tokens.log_ratio.expm1() - tokens.log_ratio


def _total_variation(tokens: Tokens) -> Tensor:
    return (tokens.logps.exp() - (tokens.logps - tokens.log_ratio).exp()).abs()


def _binary_kl(tokens: Tokens) -> Tensor:
    margin = (_PROBABILITY_MARGIN, 1 - _PROBABILITY_MARGIN)
    old = tokens.logps.exp().clamp(*margin)
    rollout = (tokens.logps - tokens.log_ratio).exp().clamp(*margin)
    stay, leave = (old / rollout).log(), ((1 - old) / (1 - rollout)).log()
    forward = old * stay + (1 - old) * leave
    backward = -rollout * stay - (1 - rollout) * leave
    return torch.maximum(forward, backward)


_STATISTICS: Final[dict[str, Callable[[Tokens], Tensor]]] = {
    "ratio": _ratio,
    "k1": _k1,
    "k2": _k2,
    "k3": _k3,
    "tv": _total_variation,
    "binary_kl": _binary_kl,
}
STATISTICS: Final = tuple(_STATISTICS)


@dataclass(frozen=True)
class Weight:
    """The importance weight of each token: the ratio π_old/π_rollout at a level, truncated to [floor, cap].

    e^{δ_t} at level "token", e^{Σ δ} at "sum", e^{mean δ} at "mean", and e^{mean δ of the turn} at "segment". Σ δ is
    first clamped to ±20, which keeps its exponential finite where no cap does.

    Attributes:
        level: "token", "sum", "mean" or "segment".
        cap: the largest weight, > 0; infinity truncates nothing.
        floor: the smallest weight, in [0, cap].

    Raises:
        ValueError: an unknown level, or a bound out of range.

    Example:
        Weight("token", cap=2.0)  # truncated importance sampling
    """

    level: str = "token"
    cap: float = math.inf
    floor: float = 0.0

    def __post_init__(self) -> None:
        checks.choice("weight.level", self.level, [level for level in LEVELS if level != "max"])
        checks.number("weight.cap", self.cap, 0.0, strict=True)
        if checks.number("weight.floor", self.floor, 0.0) > self.cap:
            raise ValueError(f"weight.floor: {self.floor!r} must not exceed the cap {self.cap!r}.")


@dataclass(frozen=True)
class Gate:
    """Rejects the tokens whose statistic lies outside of [low, high]. A value on a bound passes.

    | statistic   | of one token                                       | bounds are            |
    |-------------|----------------------------------------------------|-----------------------|
    | "ratio"     | e^δ; sums and means are taken of δ, before the exp | ratios                |
    | "k1"        | −δ, an estimate of KL(π_rollout ‖ π_old)           | nats                  |
    | "k2"        | δ²/2                                               | nats                  |
    | "k3"        | e^δ − 1 − δ, an unbiased one that is never below 0 | nats                  |
    | "tv"        | abs(π_old − π_rollout)                             | probabilities         |
    | "binary_kl" | max(KL(p ‖ q), KL(q ‖ p)) of sampled or not        | nats                  |

    In the last row p and q are π_old and π_rollout, and KL(p ‖ q) = p ln(p/q) + (1 − p) ln((1 − p)/(1 − q)). Both are
    kept 1e-6 away from 0 and 1.

    Attributes:
        statistic: one of STATISTICS.
        level: one of LEVELS. All but "token" reject whole responses, or whole turns at "segment".
        low: the lower bound; None for none.
        high: the upper bound; None for none.

    Raises:
        ValueError: an unknown statistic or level, no bound at all, or bounds out of order.

    Sources: k1 to k3: J. Schulman, "Approximating KL Divergence" (2020). "ratio" at "mean": Y. Liu and others, "When
    Speed Kills Stability: Demystifying RL Collapse from the Training-Inference Mismatch" (2025). "k3" at "max" and
    "mean": "Trust Region Masking for Long-Horizon LLM Reinforcement Learning", arXiv 2512.23075.

    Example:
        Gate("k3", "mean", high=0.01).name  # "k3_mean"
    """

    statistic: str = "ratio"
    level: str = "token"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        checks.choice("gate.statistic", self.statistic, STATISTICS)
        checks.choice("gate.level", self.level, LEVELS)
        least = 0.0 if self.statistic == "ratio" else -math.inf
        for name, bound in (("low", self.low), ("high", self.high)):
            if bound is not None:
                checks.number(f"gate.{name}", bound, least)
        if self.low is None and self.high is None:
            raise ValueError(
                "gate.low, gate.high: both are None, so the gate would reject nothing; give one."
            )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"gate.low: {self.low!r} must not exceed gate.high {self.high!r}.")

    @property
    def name(self) -> str:
        """How statistics call it."""
        return f"{self.statistic}_{self.level}"

    def limits(self) -> tuple[float, float]:
        """The bounds as the statistic is computed: of "ratio" its log."""
        low, high = self.low, self.high
        if self.statistic == "ratio":
            low, high = (None if bound is None else _log(bound) for bound in (low, high))
        return -math.inf if low is None else low, math.inf if high is None else high


@dataclass(frozen=True, kw_only=True)
class RolloutCorrection:
    """A weight, gates and a veto, in any combination.

    Attributes:
        weight: factors of the token losses; None for 1.
        gates: a token must pass all of them.
        veto: a response is rejected as a whole if one of its tokens has e^δ below this ratio; None for no veto. It also
            sees tokens that everything else takes as equal: δ below −20, down to an old log-prob of −∞.
        denominator: "all": rejected tokens stay in the denominators of the loss, with a weight of 0. Most trainers do
            this, and the denominators do not depend on the engine. "kept": they leave the denominators.

    Raises:
        ValueError: an unknown denominator, a veto out of range, two gates on the same statistic and level, or parts of
            another type.

    Example:
        RolloutCorrection(weight=Weight("token", cap=2.0), gates=(Gate(high=10.0),), veto=1e-4)
    """

    weight: Weight | None = None
    gates: tuple[Gate, ...] = ()
    veto: float | None = None
    denominator: str = "all"

    def __post_init__(self) -> None:
        if self.weight is not None and not isinstance(self.weight, Weight):
            raise ValueError(f"weight: {self.weight!r} is not a Weight; for example weight=Weight('token').")
        if isinstance(self.gates, Gate) or not all(isinstance(gate, Gate) for gate in self.gates):
            raise ValueError(f"gates: {self.gates!r} is not a tuple of Gates; for example (Gate(high=2.0),).")
        object.__setattr__(self, "gates", tuple(self.gates))
        checks.choice("denominator", self.denominator, DENOMINATORS)
        if self.veto is not None:
            checks.number("veto", self.veto, 0.0, strict=True)
        names = [gate.name for gate in self.gates]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"gates: two of them are on {name}; give one with both bounds.")

    @property
    def needs_turns(self) -> bool:
        """Whether it needs `turn_ids`."""
        return any(part is not None and part.level == "segment" for part in (self.weight, *self.gates))

    @staticmethod
    def single(
        *,
        statistic: str = "ratio",
        level: str = "sum",
        action: str = "truncate",
        low: float | None = None,
        high: float | None = None,
        denominator: str = "all",
    ) -> RolloutCorrection:
        """The correction by one criterion.

        "truncate" gives the weight at that level, truncated to [low, high]. It exists for the ratio alone, because the
        other statistics are no weights. "reject" rejects outside of [low, high]; the ratio then also weighs what is
        left, at the same level, and the other statistics leave weights of 1.

        Args:
            statistic, level, low: as in `Gate`.
            high: as in `Gate`; to truncate, None is 5, as in the CTPO recipe.
            action: "truncate" or "reject".
            denominator: as in the class.

        Raises:
            ValueError: unknown names, bounds out of range, or a divergence to truncate.
        """
        checks.choice("action", action, ACTIONS)
        checks.choice("statistic", statistic, STATISTICS)
        if action == "truncate" and statistic != "ratio":
            raise ValueError(
                f"action: {action!r} needs statistic='ratio', as {statistic!r} is no weight; use 'reject'."
            )
        if action == "truncate":
            weight = Weight(level, 5.0 if high is None else high, low or 0.0)
            return RolloutCorrection(weight=weight, denominator=denominator)
        weighs = statistic == "ratio" and level != "max"
        return RolloutCorrection(
            weight=Weight(level) if weighs else None,
            gates=(Gate(statistic, level, low, high),),
            denominator=denominator,
        )


@dataclass(frozen=True)
class Correction:
    """What a correction gives to an objective.

    Attributes:
        weights: factors of the token losses, the shape of the log-probs, without gradient. Pass them as `weights`.
            Rejected tokens that stay in the denominators have 0 here.
        rejection_mask: true on tokens that leave the loss and its denominators. Pass it as `rejection_mask`. These
            tokens stay in the response mask, so that positions and products do not change.
        rejected: true on all tokens that were rejected, whether the denominators count them or not.
        stats: detached 0-d tensors. mismatch_k1 and mismatch_k3 estimate KL(rollout ‖ old) per token, in nats.
            truncated_fraction, rejected_fraction and rejected_by_<gate> are shares of the tokens, and
            rejected_responses is one of the responses. weight_mean and ess are the mean and the effective sample
            size, (Σ w)² / (n Σ w²), of the weights over all tokens, with 0 where one was rejected. neutralised counts
            tokens with unusable log-probs.
    """

    weights: Tensor
    rejection_mask: Tensor
    rejected: Tensor
    stats: dict[str, Tensor]

    @property
    def loss_mask(self) -> Tensor:
        """The opposite of `rejection_mask`, under its old name."""
        warnings.warn("loss_mask goes in the next release; pass rejection_mask.", FutureWarning, stacklevel=2)
        return ~self.rejection_mask


@old_keywords(mask="response_mask")
@torch.no_grad()
def correct_rollout(
    old_logps: Tensor,
    rollout_logps: Tensor,
    response_mask: Tensor,
    correction: RolloutCorrection | None = None,
    *,
    turn_ids: Tensor | None = None,
    layout: Layout | None = None,
    **criterion: Any,
) -> Correction:
    """The weights and the rejected tokens of a batch, and statistics of both.

    A token with log-probs that are not finite, or with |δ| > 20, is neutralised: it has δ = 0 and π_old = π_rollout in
    every statistic, it counts in means, and `stats` counts it. Sums are accumulated in float64 where the device has it.

    Args:
        old_logps: [B, T], or [N] if packed, the trainer's log-probs of the policy that sampled, nats.
        rollout_logps: the same shape, the log-probs the engine reported, nats.
        response_mask: the same shape, true on tokens that the model sampled.
        correction: what to do; see `named_correction` for those of the field. None is the CTPO recipe, sequence weights
            truncated at 5, or the single criterion that the keywords describe.
        turn_ids: the same shape, for level "segment": the number of each token's turn, integers. A turn ends where the
            number changes; numbers outside the mask do not count. `turns_of` finds them in a response mask.
        layout: how the tokens form responses; None is padded rows.
        criterion: keywords of `RolloutCorrection.single`, instead of a correction.

    Raises:
        ValueError: keywords that are unknown, out of range or beside a correction; shapes that differ; or no turn_ids
            where they are needed.

    Example:
        correction = correct_rollout(old_logps, rollout_logps, response_mask, named_correction("icepop"))
        out = objective(
            logps, old_logps, advantages, response_mask,
            weights=correction.weights, rejection_mask=correction.rejection_mask,
        )

    Sources: E. L. Ionides, "Truncated Importance Sampling", Journal of Computational and Graphical Statistics 17
    (2008). Recipe: arXiv 2605.07331.
    """
    if isinstance(correction, str):
        raise ValueError(f"correction: {correction!r} is a name; pass named_correction({correction!r}).")
    if correction is not None and not isinstance(correction, RolloutCorrection):
        raise ValueError(
            f"correction: {correction!r} is not a RolloutCorrection; pass named_correction('custom', …)."
        )
    if correction is not None and criterion:
        raise ValueError(f"{next(iter(criterion))}: a correction is given too; drop one of them.")
    if correction is None:
        correction = RolloutCorrection.single(**_criterion(criterion))
    _check(old_logps, rollout_logps, response_mask, turn_ids, correction)
    layout = Padded() if layout is None else layout
    mask, wide = as_bool(response_mask), prefix_dtype(old_logps.device)
    tokens = sanitise(old_logps.to(wide), rollout_logps.to(wide), mask, layout)
    turns = layout.turns(turn_ids, mask) if correction.needs_turns and turn_ids is not None else None

    rejections = {}
    for gate in correction.gates:
        value = _at_level(_STATISTICS[gate.statistic](tokens), gate.level, tokens, turns)
        low, high = gate.limits()
        rejections[gate.name] = mask & ((value < low) | (value > high))
    if correction.veto is not None:
        rejections["veto"] = mask & _vetoed(
            old_logps.to(wide), rollout_logps.to(wide), mask, correction.veto, layout
        )
    rejected = torch.zeros_like(mask)
    for each in rejections.values():
        rejected = rejected | each

    one = torch.ones_like(tokens.logps)
    weights, truncated = one, torch.zeros_like(mask)
    if correction.weight is not None:
        log_weight = _at_level(tokens.log_ratio, correction.weight.level, tokens, turns)
        weights = log_weight.clamp(-SATURATION, SATURATION).exp().expand_as(one)
        truncated = (
            mask & ~rejected & ((weights > correction.weight.cap) | (weights < correction.weight.floor))
        )
        weights = torch.where(mask, weights.clamp(correction.weight.floor, correction.weight.cap), one)
    stats = _summary(tokens, weights, truncated, rejected, rejections, layout)
    leave = rejected if correction.denominator == "kept" else torch.zeros_like(rejected)
    weights = torch.where(rejected, one if correction.denominator == "kept" else 0 * one, weights)
    return Correction(weights.to(compute_dtype(old_logps, rollout_logps)), leave, rejected, stats)


def anchor_logps(anchor: str, old_logps: Tensor | None, rollout_logps: Tensor | None) -> Tensor:
    """The log-probs against which the ratio is taken.

    "old" is the policy before this batch's updates, as the trainer recomputes it. The ratio is 1 at the first update,
    and `correct_rollout` corrects the difference to the engine. "rollout" is what the engine reports. That saves a
    forward pass and is the policy that sampled, but a product accumulates the difference of every token in the prefix.

    Raises:
        ValueError: unknown anchor, or its log-probs are missing.

    Example:
        old = anchor_logps("rollout", None, rollout_logps)
    """
    checks.choice("anchor", anchor, ANCHORS)
    chosen = old_logps if anchor == "old" else rollout_logps
    if chosen is None:
        raise ValueError(f"anchor: {anchor!r} needs {anchor}_logps, which are None.")
    return chosen


def _at_level(values: Tensor, level: str, tokens: Tokens, turns: Layout | None) -> Tensor:
    """A statistic per token, taken over what the level says. Values of tokens that do not count must be 0."""
    layout = tokens.layout
    if level == "token":
        return values
    if level == "sum":
        return layout.sequence_sum(values)
    if level == "mean":
        return layout.sequence_sum(values) / layout.sequence_sum(tokens.mask).clamp(min=1)
    if level == "max":
        return layout.sequence_max(torch.where(tokens.mask, values, torch.full_like(values, -torch.inf)))
    assert turns is not None
    return turns.sequence_sum(values) / turns.sequence_sum(tokens.mask).clamp(min=1)


def _vetoed(old: Tensor, rollout: Tensor, mask: Tensor, veto: float, layout: Layout) -> Tensor:
    delta = old - rollout
    hopeless = mask & rollout.isfinite() & (delta < math.log(veto))
    return layout.sequence_sum(hopeless) > 0


def _summary(
    tokens: Tokens,
    weights: Tensor,
    truncated: Tensor,
    rejected: Tensor,
    rejections: dict[str, Tensor],
    layout: Layout,
) -> dict[str, Tensor]:
    mask, zero = tokens.mask, torch.zeros_like(weights)
    n = layout.sum_shards(mask.sum()).clamp(min=1)
    responses = layout.count_sequences(mask).clamp(min=1)

    def share(flags: Tensor) -> Tensor:
        return layout.sum_shards((flags & mask).sum()) / n

    def mean(values: Tensor) -> Tensor:
        return layout.sum_shards(torch.where(mask, values, zero).sum()) / n

    applied = torch.where(rejected, zero, weights)
    square = mean(applied.square())
    return {
        "mismatch_k1": mean(_k1(tokens)),
        "mismatch_k3": mean(_k3(tokens)),
        "truncated_fraction": share(truncated),
        "rejected_fraction": share(rejected),
        "rejected_responses": layout.count_sequences(rejected) / responses,
        **{f"rejected_by_{name}": share(flags) for name, flags in rejections.items()},
        "weight_mean": mean(applied),
        "ess": mean(applied).square() / torch.where(square > 0, square, torch.ones_like(square)),
        "neutralised": layout.sum_shards((mask & ~tokens.kept).sum()).to(n.dtype),
    }


def _check(
    old_logps: Tensor,
    rollout_logps: Tensor,
    response_mask: Tensor,
    turn_ids: Tensor | None,
    correction: RolloutCorrection,
) -> None:
    tensors = {"rollout_logps": rollout_logps, "response_mask": response_mask, "turn_ids": turn_ids}
    for name, value in tensors.items():
        if value is not None and value.shape != old_logps.shape:
            raise ValueError(
                f"{name}: shape {tuple(value.shape)} differs from old_logps {tuple(old_logps.shape)}."
            )
    checks.mask_values("response_mask", response_mask)
    if correction.needs_turns and turn_ids is None:
        raise ValueError("turn_ids: level 'segment' needs the turn of each token; pass turn_ids.")
    if turn_ids is not None and (turn_ids.is_floating_point() or turn_ids.dtype == torch.bool):
        raise ValueError(f"turn_ids: dtype {turn_ids.dtype} is not an integer type.")


def _criterion(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `RolloutCorrection.single` under their current names, after a check of the names."""
    current = current_criterion(given)
    for name in current:
        checks.choice("correct_rollout", name, inspect.signature(RolloutCorrection.single).parameters)
    return current


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -math.inf
