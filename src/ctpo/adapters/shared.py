"""What the adapters share: settings, the objective, the trainer's modules, and statistics for the trainer."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.objectives import Objective, Output, preset

_REDUCTIONS: Final = ("reduction", "norm_length")
VARIABLE: Final = "CTPO_LOSS"
"""The environment variable that holds the settings where a trainer has no place for foreign ones."""
_NO_RATIO: Final = 80.0
"""Nats. `exp` of it is finite in float32 and in bfloat16."""


@dataclass(frozen=True)
class Settings:
    """Which objective an adapter calls."""

    preset: str = "ctpo"
    anchor: str = "old"
    """The log-probs in the denominator: "old" (recomputed) or "rollout" (the engine's, for asynchronous training)."""
    knobs: dict[str, Any] = field(default_factory=dict)

    @property
    def objective(self) -> Objective:
        """The preset, without its reduction, which is the trainer's."""
        return objective_for(self.preset, self.knobs)


def settings_from_environment() -> Settings:
    """The settings in `CTPO_LOSS`, which is JSON such as `{"preset": "ctpo", "knobs": {"log_high": 0.1}}`.

    Raises:
        UserError: if it is no such JSON, or names another setting.
    """
    text = os.environ.get(VARIABLE, "{}")
    try:
        given = json.loads(text)
        return Settings(**given)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{VARIABLE}={text} cannot be read ({error}); give JSON with preset, anchor and knobs, for example "
            '{"preset": "ctpo", "anchor": "rollout"}'
        ) from None


def framework(module: str, install: str) -> ModuleType:
    """A module of a trainer.

    Args:
        module: its dotted name.
        install: what to install, for the error message.

    Raises:
        ImportError: if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise ImportError(f"{module} cannot be imported ({missing}); install {install}") from missing


def subclass(name: str, ours: type, theirs: type, module: str) -> type:
    """A class of ours over one of a trainer's, which can be named and pickled as a member of the module."""
    return type(name, (ours, theirs), {"__module__": module, "__doc__": ours.__doc__})


def without_ratio(old: Tensor, logps: Tensor) -> Tensor:
    """The anchor's log-probs, moved where a ratio to them would overflow, for a loss whose advantages are all 0."""
    return torch.maximum(old, logps.detach() - _NO_RATIO)


def objective_for(name: str, knobs: Mapping[str, Any], *, trainer_reduces: bool = True) -> Objective:
    """A preset, without the reduction if the trainer reduces.

    Equal arguments give the same object, so that a quantile gate keeps its running average from call to call.

    Args:
        name: the preset's name.
        knobs: its settings.
        trainer_reduces: whether the trainer sums and divides. The objective's own loss is then a plain sum.

    Raises:
        UserError: for a knob that repeats a setting of the trainer.
        ValueError: for a preset or knob that does not exist.
    """
    for key in _REDUCTIONS if trainer_reduces else ():
        if key in knobs:
            raise UserError(
                f"{key}={knobs[key]!r} has no effect, as the trainer's own setting decides this; drop it from knobs"
            )
    return _built(name, tuple(sorted(knobs.items())), trainer_reduces)


@lru_cache(maxsize=64)
def _built(name: str, knobs: tuple[tuple[str, Any], ...], trainer_reduces: bool) -> Objective:
    built = preset(name, **dict(knobs))
    if not trainer_reduces:
        return built
    return dataclasses.replace(built, reduction=dataclasses.replace(built.reduction, name="sum"))


def token_losses(objective: Objective, out: Output, mask: Tensor) -> Tensor:
    """The token losses [B, T] for the trainer to reduce. If the preset scales by length, they are times T_i^p."""
    power = objective.reduction.length_power
    if power == 0.0:
        return out.token_loss
    return out.token_loss * mask.sum(-1, keepdim=True).clamp(min=1).pow(power)


def floats(stats: Mapping[str, Tensor], prefix: str = "ctpo/") -> dict[str, float]:
    """The statistics as floats, their names with a prefix, in one read from the device."""
    values = torch.stack([value.double() for value in stats.values()]).tolist()
    return {prefix + name: value for name, value in zip(stats, values, strict=True)}


def refuse(settings: Any, where: str, **wanted: Any) -> None:
    """Refuse settings that act inside the trainer's own loss, and would have no effect on this one.

    Args:
        settings: the trainer's settings.
        where: their name in messages.
        wanted: the only value that is allowed, for each setting. A setting that does not exist is allowed.

    Raises:
        UserError: for the first setting with another value.
    """
    for name, value in wanted.items():
        given = getattr(settings, name, value)
        if given != value:
            raise UserError(f"{where}.{name}={given!r} has no effect on this loss; set it to {value!r}")
