"""Named objectives. A preset is a few lines that compose parts; its knobs keep its paper's convention."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Final

from ctpo.objectives import checks
from ctpo.objectives.objective import Objective
from ctpo.objectives.ratios import CumulativeRatio, SequenceMeanRatio, TokenRatio
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import MinClip
from ctpo.objectives.trust_regions import LogBand, RatioBand


def ctpo(
    low: float = 0.025,
    high: float = 0.05,
    dual: float | None = 0.05,
    power: float = 0.5,
    reduction: str = "token-mean",
) -> Objective:
    """CTPO (arXiv 2605.07331): ρ_t = Π_{s≤t} r_s, min-clipped to e^[−low·t^power, high·t^power], dual clip
    e^(dual·t^power).

    token-mean is how the published implementation runs; the paper's formula is seq-mean-token-mean.
    """
    return Objective(
        ratio=CumulativeRatio(),
        trust_region=LogBand(low, high, dual, power),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def ctpo_fixed(
    low: float = math.log(2),
    high: float = math.log(5),
    dual: float | None = math.log(5),
    reduction: str = "token-mean",
) -> Objective:
    """CTPO with a band that does not widen: ρ_t in [0.5, 5] by default, the paper's ablation. Knobs are
    log-space.
    """
    return ctpo(low, high, dual, 0.0, reduction)


def grpo(
    low: float = 0.2, high: float = 0.28, dual: float | None = 3.0, reduction: str = "seq-mean-token-mean"
) -> Objective:
    """GRPO (arXiv 2402.03300, equation 3): r_t min-clipped to [1 − low, 1 + high], dual clip at `dual`.

    The band is the one CTPO's paper runs its GRPO baseline with; GRPO's own is symmetric without dual clip
    (`high=0.2, dual=None`).
    """
    return Objective(
        ratio=TokenRatio(),
        trust_region=RatioBand(low, high, dual),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


def gspo(
    low: float = 3e-4,
    high: float = 4e-4,
    dual: float | None = None,
    reduction: str = "seq-mean-token-mean",
) -> Objective:
    """GSPO (arXiv 2507.18071, equations 5 to 7): (Π r_s)^{1/T}, min-clipped to [1 − low, 1 + high]."""
    return Objective(
        ratio=SequenceMeanRatio(),
        trust_region=RatioBand(low, high, dual),
        surrogate=MinClip(),
        reduction=Reduction(reduction),
    )


_PRESETS: Final[dict[str, Callable[..., Objective]]] = {
    "ctpo": ctpo,
    "ctpo-fixed": ctpo_fixed,
    "grpo": grpo,
    "gspo": gspo,
}

_SHARED: Final[dict[str, Any]] = {"norm_length": 1.0, "on_bad": "neutralise"}
"""Knobs every preset takes: K of seq-mean-token-sum-norm (tokens), and the policy for unusable log-probs."""


def preset_names() -> tuple[str, ...]:
    """Names `preset` knows."""
    return tuple(_PRESETS)


def preset_defaults(name: str) -> dict[str, Any]:
    """Knobs of a preset and their defaults.

    Raises:
        ValueError: unknown preset.
    """
    builder = _PRESETS[checks.choice("preset", name, _PRESETS)]
    own = {key: parameter.default for key, parameter in inspect.signature(builder).parameters.items()}
    return {**_SHARED, **own}


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
    shared = {key: knobs.pop(key) for key in _SHARED if key in knobs}
    objective = _PRESETS[name](**knobs)
    norm_length = checks.finite_number("norm_length", shared.pop("norm_length"), 0.0, strict=True)
    return dataclasses.replace(
        objective, reduction=dataclasses.replace(objective.reduction, norm_length=norm_length), **shared
    )
