"""Rollout corrections by the names that trainers use, each with the settings of its source.

δ_t = log π_old − log π_rollout is the difference of one token, in nats. T is the length of a response in sampled
tokens. All of them take two more knobs: `veto`, and `denominator`, which is "all" or "kept". `RolloutCorrection`
explains both.

`ctpo.training` reads this file without importing it, so defaults are spelled out in the signatures.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ctpo.objectives import checks
from ctpo.objectives.rollout_correction import Gate, RolloutCorrection, Weight


def recipe(cap: float = 5.0) -> RolloutCorrection:
    """min(e^{Σ δ}, cap) for all tokens of a response.

    The correction of "Rethinking Importance Sampling in LLM Policy Optimization: A Cumulative Token Perspective", arXiv
    2605.07331. At a sum, ratios of long responses spread: with standard deviation s per token, half of the weights lie
    below e^{−s²T/2}.
    """
    return RolloutCorrection(weight=Weight("sum", cap))


def tis(cap: float = 2.0) -> RolloutCorrection:
    """min(e^{δ_t}, cap): truncated importance sampling of each token.

    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (F. Yao and others, 2025). verl's default
    cap is 2.
    """
    return RolloutCorrection(weight=Weight("token", cap))


def icepop(low: float = 0.5, high: float = 5.0) -> RolloutCorrection:
    """e^{δ_t} where it lies in [low, high], else rejected.

    IcePop in "Every Step Evolves: Scaling Reinforcement Learning for Trillion-Scale Thinking Model", arXiv 2510.18855.
    """
    return RolloutCorrection(weight=Weight("token"), gates=(Gate("ratio", "token", low, high),))


def geo_mask(low: float = 0.99, high: float = 1.01) -> RolloutCorrection:
    """Responses whose e^{(1/T) Σ δ} lies outside of [low, high] are rejected; weights are 1.

    "When Speed Kills Stability: Demystifying RL Collapse from the Training-Inference Mismatch" (2025). The bounds are
    those of SkyRL's examples. A mixture of experts needs wider ones.
    """
    return RolloutCorrection(gates=(Gate("ratio", "mean", low, high),))


def seq_mask_tis(low: float = 0.999, high: float = 1.002, cap: float = math.inf) -> RolloutCorrection:
    """The gate of `geo-mask`; the tokens of responses that pass have the weight min(e^{δ_t}, cap).

    NeMo-RL's "seq-mask-tis", with its reference bounds. It does not truncate the weights, which is the default here.
    """
    return RolloutCorrection(weight=Weight("token", cap), gates=(Gate("ratio", "mean", low, high),))


def trm_max(high: float = 0.05) -> RolloutCorrection:
    """Responses with a token whose k3 = e^δ − 1 − δ exceeds `high` nats are rejected.

    "Trust Region Masking for Long-Horizon LLM Reinforcement Learning", arXiv 2512.23075. The bound is ours, since no
    trainer has a default: 0.05 nats is a ratio outside of about [0.72, 1.35].
    """
    return RolloutCorrection(gates=(Gate("k3", "max", high=high),))


def trm_avg(high: float = 0.001) -> RolloutCorrection:
    """Responses whose mean of k3 = e^δ − 1 − δ exceeds `high` nats are rejected.

    arXiv 2512.23075, as `trm-max`. The bound is ours: 0.001 nats is a standard deviation of δ of about 0.045.
    """
    return RolloutCorrection(gates=(Gate("k3", "mean", high=high),))


def none() -> RolloutCorrection:
    """Weights of 1, and nothing is rejected."""
    return RolloutCorrection()


def custom(
    weight: Mapping[str, Any] | None = None, gates: Sequence[Mapping[str, Any]] = ()
) -> RolloutCorrection:
    """Any combination: `weight` has the fields of `Weight`, and each of `gates` those of `Gate`."""
    return RolloutCorrection(
        weight=None if weight is None else Weight(**_fields("weight", weight, Weight)),
        gates=tuple(Gate(**_fields("gates", gate, Gate)) for gate in _list(gates)),
    )


def as_in_trl(mode: str, low: float | None, high: float | None) -> RolloutCorrection:
    """The correction of TRL's `vllm_importance_sampling_mode`, `…_clip_min` and `…_clip_max`.

    Args:
        mode: "token" or "sequence", then "_truncate" or "_mask".
        low, high: bounds of the ratio; None for none.

    Raises:
        ValueError: unknown mode, or bounds out of range.
    """
    checks.choice("vllm_importance_sampling_mode", mode, _TRL_MODES)
    level, action = mode.split("_")
    level = "sum" if level == "sequence" else level
    if action == "truncate":
        return RolloutCorrection(weight=Weight(level, math.inf if high is None else high, low or 0.0))
    bounded = low is not None or high is not None
    gates = (Gate("ratio", level, low, high),) if bounded else ()
    return RolloutCorrection(weight=Weight(level), gates=gates)


_TRL_MODES: Final = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
_CORRECTIONS: Final[dict[str, Callable[..., RolloutCorrection]]] = {
    "recipe": recipe,
    "tis": tis,
    "icepop": icepop,
    "geo-mask": geo_mask,
    "seq-mask-tis": seq_mask_tis,
    "trm-max": trm_max,
    "trm-avg": trm_avg,
    "custom": custom,
    "none": none,
}
_SHARED: Final[dict[str, Any]] = {"veto": None, "denominator": "all"}
"""The knobs that every correction has."""


def correction_names() -> list[str]:
    """The names of all corrections.

    Example:
        "icepop" in correction_names()  # True
    """
    return list(_CORRECTIONS)


def correction_defaults(name: str) -> dict[str, Any]:
    """Every knob of a correction with its default.

    Raises:
        ValueError: unknown name.

    Example:
        correction_defaults("icepop")["low"]  # 0.5
    """
    build = _CORRECTIONS[checks.choice("rollout_correction", name, _CORRECTIONS)]
    own = {knob.name: knob.default for knob in inspect.signature(build).parameters.values()}
    return {**own, **_SHARED}


def named_correction(name: str, **knobs: Any) -> RolloutCorrection:
    """The correction with this name.

    Args:
        name: one of `correction_names()`.
        knobs: settings to change, of `correction_defaults(name)`.

    Raises:
        ValueError: unknown name or knob, or a value out of range.

    Example:
        named_correction("icepop", low=0.8, high=1.25, veto=1e-4)
    """
    known = correction_defaults(name)
    for knob in knobs:
        checks.choice(f"rollout_correction {name!r}", knob, known)
    own = {knob: value for knob, value in knobs.items() if knob not in _SHARED}
    shared = {knob: value for knob, value in knobs.items() if knob in _SHARED}
    return dataclasses.replace(_CORRECTIONS[name](**own), **shared)


def _list(gates: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if isinstance(gates, Mapping | str) or not isinstance(gates, Sequence):
        raise ValueError(f"gates: {gates!r} is not a list; give one mapping per gate.")
    return gates


def _fields(argument: str, given: Mapping[str, Any], of: type) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{argument}: {given!r} is not a mapping of fields to values.")
    for field in given:
        checks.choice(argument, field, [each.name for each in dataclasses.fields(of)])
    return dict(given)
