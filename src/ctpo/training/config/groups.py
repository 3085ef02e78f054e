"""Checks of the settings that say which groups of responses a rollout batch trains on, without importing torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Protocol

BUCKETS: Final = ("easy", "normal", "hard")
CURRICULUM: Final = {"easy": 0.0, "normal": 0.0, "hard": 0.0, "easy_from": 0.8, "hard_to": 0.2}
"""The knobs of `curriculum` with their defaults: shares of the buckets, and the solve rates at their edges."""
_MOST_OVERSAMPLING: Final = 100.0


class GroupSettings(Protocol):
    """The settings that decide which groups are trained on. `ctpo.training.config.config.CTPOConfig` describes them."""

    dynamic_sampling_rounds: int
    oversampling: float
    curriculum: dict[str, Any] | str | None
    group_metric: str | None


def chooses_groups(settings: GroupSettings) -> bool:
    """Whether a rollout batch may sample other groups than TRL would."""
    return bool(settings.dynamic_sampling_rounds or settings.oversampling > 1 or settings.curriculum)


def check_groups(settings: GroupSettings) -> None:
    """Check these settings.

    Raises:
        ValueError: for the first that is out of range or has no effect.
    """
    rounds = settings.dynamic_sampling_rounds
    if type(rounds) is not int or rounds < 0:
        raise ValueError(
            f"dynamic_sampling_rounds={rounds!r} is no number of rounds; use 0 to keep groups without spread"
        )
    if not 1 <= settings.oversampling <= _MOST_OVERSAMPLING:
        raise ValueError(
            f"oversampling={settings.oversampling} is out of range; use 1 (no more groups than needed) to "
            f"{_MOST_OVERSAMPLING:.0f}"
        )
    if settings.curriculum is not None:
        if not isinstance(settings.curriculum, Mapping):
            raise ValueError(
                f"curriculum={settings.curriculum!r} is no mapping; use for example {{normal: 0.8, hard: 0.2}}"
            )
        curriculum_settings(settings.curriculum)
    if settings.group_metric is not None and not chooses_groups(settings):
        raise ValueError(
            f"group_metric={settings.group_metric!r} has no effect without dynamic_sampling_rounds, oversampling or "
            "curriculum; set one of them, or drop it"
        )


def curriculum_settings(knobs: Mapping[str, Any]) -> dict[str, float]:
    """All knobs of `curriculum`, with defaults for those that are not given.

    Raises:
        ValueError: if a knob is unknown, no number or out of range, or if all shares are 0.
    """
    for name, value in knobs.items():
        if name not in CURRICULUM:
            raise ValueError(f"curriculum.{name} is unknown; known: {', '.join(CURRICULUM)}")
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (name in BUCKETS and value < 0):
            wanted = "a share of at least 0" if name in BUCKETS else "a solve rate"
            raise ValueError(f"curriculum.{name}={value!r} is out of range; use {wanted}")
    settings = {**CURRICULUM, **{name: float(value) for name, value in knobs.items()}}
    if not sum(settings[name] for name in BUCKETS):
        raise ValueError(
            "curriculum has no share above 0; use for example {easy: 0.1, normal: 0.8, hard: 0.1}"
        )
    if settings["hard_to"] >= settings["easy_from"]:
        raise ValueError(
            f"curriculum.hard_to={settings['hard_to']} is not below easy_from={settings['easy_from']}; use for example "
            "hard_to: 0.2 and easy_from: 0.8"
        )
    return settings
