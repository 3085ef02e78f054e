"""Named objectives. A preset is a few lines that compose the four parts, with the settings of its paper.

Knobs carry their unit. `log_low`, `log_high` and `log_dual` bound a log ratio, in nats, times t^power; t counts the
sampled tokens so far. `ratio_low` and `ratio_high` are distances from a ratio of 1, and `ratio_dual` is a ratio.
`delta` bounds the statistic that the preset names, in its own unit.
r_t = π_θ(a_t|s_t) / π_old(a_t|s_t) is the ratio of one token, A the advantage, T a response's length in tokens, and
sg stops the gradient. Formulas are losses of one token. docs/reference/objectives.md says when to use which.

`ctpo.training` reads this file and those of the presets without importing them, so defaults are spelled out in the
signatures.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Final

from ctpo.objectives import checks
from ctpo.objectives.objective import Objective
from ctpo.objectives.presets_ctpo import (
    ctpo,
    ctpo_calibrated,
    ctpo_decay,
    ctpo_fixed,
    ctpo_fixed_matched,
    ctpo_geomean,
    ctpo_prefix_gradient,
    ctpo_turn,
    ctpo_vespo,
    prefix_quantile,
    sequence,
    sequence_quantile,
)
from ctpo.objectives.presets_published import (
    aspo,
    ce_gppo,
    cispo,
    cppo,
    dapo,
    dispo,
    dppo_kl,
    dppo_tv,
    dr_grpo,
    fspo,
    gmpo,
    grpo,
    gspo,
    gspo_token,
    ipo,
    kimi,
    lusp,
    m2po,
    minpro,
    opsm,
    ppo,
    reinforce,
    sapo,
    topr,
    vespo,
)
from ctpo.old_names import current_backend, current_knobs

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
    "ctpo-vespo": ctpo_vespo,
    "ctpo-turn": ctpo_turn,
    "ctpo-decay": ctpo_decay,
    "lusp": lusp,
    "fspo": fspo,
    "gmpo": gmpo,
    "dppo-tv": dppo_tv,
    "dppo-kl": dppo_kl,
    "ipo": ipo,
    "cppo": cppo,
    "opsm": opsm,
    "sapo": sapo,
    "vespo": vespo,
    "topr": topr,
    "dispo": dispo,
    "aspo": aspo,
    "ce-gppo": ce_gppo,
    "m2po": m2po,
    "kimi": kimi,
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
    """The names that `preset` knows.

    Example:
        "ctpo" in preset_names()  # True
    """
    return tuple(_PRESETS)


def preset_defaults(name: str) -> dict[str, Any]:
    """The knobs of a preset with their default values, its own knobs first.

    Raises:
        ValueError: unknown preset.

    Example:
        preset_defaults("reinforce")["reduction"]  # "token-mean"
    """
    builder = _PRESETS[checks.choice("preset", name, _PRESETS)]
    own = {key: parameter.default for key, parameter in inspect.signature(builder).parameters.items()}
    return {**own, **_SHARED}


def preset_description(name: str) -> str:
    """The equation of a preset and its source, as the docstring of its function gives them.

    Raises:
        ValueError: if the preset is unknown.
    """
    return inspect.getdoc(_PRESETS[checks.choice("preset", name, _PRESETS)]) or ""


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
