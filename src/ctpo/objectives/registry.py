"""Presets by name, with checked overrides."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Final

from ctpo.objectives import checks, presets
from ctpo.objectives.objective import Objective

_PRESETS: Final[dict[str, Callable[..., Objective]]] = {
    "ctpo": presets.ctpo,
    "ctpo-fixed": presets.ctpo_fixed,
    "ctpo-fixed-matched": presets.ctpo_fixed_matched,
    "ctpo-calibrated": presets.ctpo_calibrated,
    "ctpo-geomean": presets.ctpo_geomean,
    "ctpo-prefix-gradient": presets.ctpo_prefix_gradient,
    "sequence": presets.sequence,
    "ppo": presets.ppo,
    "grpo": presets.grpo,
    "dapo": presets.dapo,
    "dr-grpo": presets.dr_grpo,
    "gspo": presets.gspo,
    "gspo-token": presets.gspo_token,
    "cispo": presets.cispo,
    "minpro": presets.minpro,
    "reinforce": presets.reinforce,
    "sequence-quantile": presets.sequence_quantile,
    "prefix-quantile": presets.prefix_quantile,
}

_SHARED: Final[dict[str, Any]] = {
    "norm_length": 1.0,
    "on_bad": "neutralise",
    "backend": "auto",
}
"""Knobs every preset takes: K of seq-mean-token-sum-norm (tokens), and those of `Objective`."""


def preset_names() -> tuple[str, ...]:
    """Names `preset` knows."""
    return tuple(_PRESETS)


def preset_defaults(name: str) -> dict[str, Any]:
    """Knobs of a preset and their defaults, its own first.

    Raises:
        ValueError: unknown preset.
    """
    builder = _PRESETS[checks.choice("preset", name, _PRESETS)]
    own = {key: parameter.default for key, parameter in inspect.signature(builder).parameters.items()}
    return {**own, **_SHARED}


def preset(name: str, **overrides: Any) -> Objective:
    """Objective by name, with overrides of its knobs.

    Args:
        name: one of `preset_names()`.
        overrides: knobs of that preset, see `preset_defaults(name)`.

    Raises:
        ValueError: unknown preset or knob (with the nearest match), or a value out of range.
    """
    known = preset_defaults(name)
    for key in overrides:
        checks.choice(f"override of preset {name!r}", key, known)
    knobs = {**known, **overrides}
    shared = {key: knobs.pop(key) for key in _SHARED}
    objective = _PRESETS[name](**knobs)
    reduction = dataclasses.replace(objective.reduction, norm_length=shared.pop("norm_length"))
    return dataclasses.replace(objective, reduction=reduction, **shared)
