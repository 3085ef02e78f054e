"""Checks of the settings of a critic, without importing torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

CRITIC: Final[dict[str, Any]] = {
    "trunk": None,
    "memory": 1.0,
    "model": None,
    "layers": None,
    "lora_r": None,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "epochs": 1,
    "replay": 0,
    "value_clip": None,
    "warmup_batches": 0,
    "warmup_epochs": None,
    "discount": 1.0,
    "trace": 1.0,
    "trace_length": None,
    "value_discount": None,
    "value_trace": 1.0,
    "normalise": "whiten",
    "correction": "none",
    "rho_bar": 1.0,
    "c_bar": 1.0,
}
"""The knobs of `critic` with their defaults; docs/how-to/critic.md describes them. None means that a knob is not
set."""
OF_COPY: Final = (
    *("model", "layers", "lora_r", "learning_rate", "weight_decay", "max_grad_norm", "epochs", "replay"),
    *("value_clip", "warmup_epochs"),
)
"""Knobs that only a copied trunk has. If one of them is given and `trunk` is not, there is a copied trunk."""
_CHOICES: Final = {
    "trunk": ("none", "shared", "copy"),
    "normalise": ("whiten", "scale", "none"),
    "correction": ("none", "v-trace"),
}
_Range = tuple[Callable[[Any], bool], str]
_SHARE: Final[_Range] = (lambda value: 0 <= value <= 1, "0 to 1")
_POSITIVE: Final[_Range] = (lambda value: 0 < value < math.inf, "more than 0")
_BAR: Final[_Range] = (lambda value: value > 0, "more than 0; inf for no bar")
_NUMBERS: Final[Mapping[str, _Range]] = {
    "memory": _POSITIVE,
    "learning_rate": (lambda value: 0 < value < 1, "more than 0 and less than 1"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "0 or more"),
    "max_grad_norm": _POSITIVE,
    "value_clip": _POSITIVE,
    "discount": _SHARE,
    "trace": _SHARE,
    "trace_length": _POSITIVE,
    "value_discount": _SHARE,
    "value_trace": _SHARE,
    "rho_bar": _BAR,
    "c_bar": _BAR,
}
_COUNTS: Final = {
    "layers": 1,
    "lora_r": 1,
    "epochs": 1,
    "replay": 0,
    "warmup_batches": 0,
    "warmup_epochs": 1,
}
"""Knobs that are whole numbers, each with its least value."""


class CriticSettings(Protocol):
    """The settings that decide about a critic. `ctpo.training.config.config.CTPOConfig` describes them."""

    advantages: str
    critic: dict[str, Any] | str | None


def check_critic(settings: CriticSettings) -> None:
    """Check these settings.

    Raises:
        ValueError: for the first knob that is unknown, of a wrong type, out of range or without effect.
    """
    if settings.critic is None:
        return
    if not isinstance(settings.critic, Mapping):
        raise ValueError(f"critic={settings.critic!r} is no mapping; use for example {{learning_rate: 1e-3}}")
    if settings.advantages != "gae":
        raise ValueError(
            f"critic has no effect with advantages={settings.advantages!r}; set advantages=gae, or drop it"
        )
    critic_knobs(settings.critic)


def critic_knobs(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """All knobs of `critic`, with defaults for those that are not given. A knob at its default counts as not given, so
    the result can be given again.

    Raises:
        ValueError: if a knob is unknown, of a wrong type, out of range or without effect.
    """
    assert not isinstance(given, str)  # a JSON string was parsed before
    knobs = dict(given or {})
    for name, value in knobs.items():
        if name not in CRITIC:
            raise ValueError(f"critic.{name} is unknown; known: {', '.join(CRITIC)}")
        if value is None and (CRITIC[name] is None or name == "max_grad_norm"):
            continue
        _check_knob(name, value)
    settings = {**CRITIC, **knobs}
    knobs = {name: value for name, value in knobs.items() if value != CRITIC[name]}
    if settings["trunk"] is None:
        settings["trunk"] = "copy" if any(name in knobs for name in OF_COPY) else "none"
    _check_together(settings, knobs)
    return settings


def _check_knob(name: str, value: Any) -> None:
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"critic.{name}={value!r} is not one of {', '.join(_CHOICES[name])}")
    elif name in _COUNTS:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        if not whole or value < _COUNTS[name]:
            raise ValueError(
                f"critic.{name}={value!r} is out of range; use a whole number from {_COUNTS[name]} up"
            )
    elif name in _NUMBERS:
        holds, wanted = _NUMBERS[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not holds(value):
            raise ValueError(f"critic.{name}={value!r} is out of range; use {wanted}")
    elif not isinstance(value, str) or not value:
        raise ValueError(f"critic.{name}={value!r} is no name; give a directory or a hub id")


def _check_together(settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if settings["trunk"] != "copy":
        for name in OF_COPY:
            if name in given:
                raise ValueError(
                    f"critic.{name}={given[name]!r} has no effect with trunk={settings['trunk']!r}, whose values are "
                    "solved for; use trunk='copy', or drop it"
                )
    if settings["trace_length"] is not None and given.get("trace") is not None:
        raise ValueError(
            f"critic.trace_length={settings['trace_length']} sets the trace by length, and trace={given['trace']} is "
            "set too; drop one"
        )
    if settings["value_clip"] is not None and settings["epochs"] == 1:
        raise ValueError(
            f"critic.value_clip={settings['value_clip']} has no effect with epochs=1, since values are clipped from "
            "the second pass on; use epochs=2 or more, or drop it"
        )
    if settings["warmup_epochs"] is not None and not settings["warmup_batches"]:
        raise ValueError(
            f"critic.warmup_epochs={settings['warmup_epochs']} has no effect with warmup_batches=0; set that too"
        )
    for name in ("rho_bar", "c_bar"):
        if settings["correction"] == "none" and name in given:
            raise ValueError(
                f"critic.{name}={given[name]} has no effect without correction='v-trace'; set that too, or drop it"
            )
