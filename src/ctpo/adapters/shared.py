"""What the adapters share: the objective by name, the trainer's modules, statistics as the trainer logs them."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.objectives import Objective, Output, preset

_REDUCTIONS: Final = ("reduction", "norm_length")


def framework(module: str, install: str) -> ModuleType:
    """A trainer's module.

    Raises:
        ImportError: naming what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise ImportError(f"{module} cannot be imported ({missing}); install {install}") from missing


def objective_for(name: str, knobs: Mapping[str, Any], *, trainer_reduces: bool = True) -> Objective:
    """Preset by name, without what the trainer does itself. Equal arguments give the same object, so that a
    quantile gate's running average survives from call to call.

    Args:
        name: a preset.
        knobs: of that preset.
        trainer_reduces: the trainer sums and divides; the objective's own loss is then a plain sum.

    Raises:
        UserError: for a knob that the trainer owns.
        ValueError: for a preset or knob that does not exist.
    """
    for key in _REDUCTIONS if trainer_reduces else ():
        if key in knobs:
            raise UserError(f"{key}={knobs[key]!r}: the trainer's own setting does this; drop it from knobs")
    return _built(name, tuple(sorted(knobs.items())), trainer_reduces)


@lru_cache(maxsize=64)
def _built(name: str, knobs: tuple[tuple[str, Any], ...], trainer_reduces: bool) -> Objective:
    built = preset(name, **dict(knobs))
    if not trainer_reduces:
        return built
    return dataclasses.replace(built, reduction=dataclasses.replace(built.reduction, name="sum"))


def token_losses(objective: Objective, out: Output, mask: Tensor) -> Tensor:
    """[B, T] token losses for the trainer to reduce, scaled by T_i^p where the preset scales by length."""
    power = objective.reduction.length_power
    if power == 0.0:
        return out.token_loss
    return out.token_loss * mask.sum(-1, keepdim=True).clamp(min=1).pow(power)


def floats(stats: Mapping[str, Tensor], prefix: str = "ctpo/") -> dict[str, float]:
    """Statistics as floats under a prefix, in one read from the device."""
    values = torch.stack([value.double() for value in stats.values()]).tolist()
    return {prefix + name: value for name, value in zip(stats, values, strict=True)}


def refuse(settings: Any, where: str, **wanted: Any) -> None:
    """Refuse settings of the trainer that a loss from outside would drop without a word.

    Raises:
        UserError: naming the first setting whose value is not the wanted one.
    """
    for name, value in wanted.items():
        found = getattr(settings, name, value)
        if found != value:
            raise UserError(f"{where}.{name}={found!r} has no effect on this loss; set it to {value!r}")
