"""Names of the previous release, still accepted with a warning that gives the new one. Delete this in the next."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_BOUNDS: Final = ("low", "high", "dual")
_UNITS: Final = ("log", "ratio")
"""Knobs whose new names begin with one of these units: `log_low`, `ratio_low`, and so on."""
_COUNTED: Final = "loss_mask"
"""The one keyword whose meaning is turned around: it was true on tokens that count."""


def old_keywords(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a function that also takes keywords under their old names.

    Args:
        names: the new name of each old one.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in names.items():
                if old in kwargs:
                    value: Any = kwargs.pop(old)
                    if old == _COUNTED and value is not None:
                        value = value == 0
                    kwargs[_current(old, new, kwargs, 3)] = value
            return function(*args, **kwargs)

        return call

    return decorate


def old_fields(**names: str) -> Callable[[type[R]], type[R]]:
    """A decorator for a class that also takes fields under their old names, as keywords.

    Args:
        names: the new name of each old one.
    """

    def decorate(cls: type[R]) -> type[R]:
        cls.__init__ = old_keywords(**names)(cls.__init__)  # type: ignore[method-assign]
        return cls

    return decorate


def current_knobs(knobs: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The knobs of a preset under their current names.

    Args:
        knobs: knobs under current and old names.
        known: the current names of all the preset's knobs.

    Raises:
        ValueError: a knob under both names.
    """
    new_names = {old: f"{unit}_{old}" for old in _BOUNDS for unit in _UNITS if f"{unit}_{old}" in known}
    new_names = {old: name for old, name in new_names.items() if old not in known}
    current = {}
    for name, value in knobs.items():
        current[_current(name, new_names[name], knobs, 4) if name in new_names else name] = value
    return current


def current_criterion(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a rollout correction under their current names, with the meaning of the previous release.

    Args:
        given: keywords of `correct_rollout` under current and old names.

    Raises:
        ValueError: a keyword under both names.
    """
    new_names = {"mode": "action", "threshold": "high", "floor": "low"}
    current = {}
    for name, value in given.items():
        current[_current(name, new_names[name], given, 7) if name in new_names else name] = value
    sequence = current.get("level") == "sequence"
    if sequence:
        _warn("level='sequence'", "level='sum'", 6)
        current["level"] = "sum"
    if sequence or new_names.keys() & given.keys():
        current.setdefault("high", 5.0)
        current.setdefault("denominator", "kept")
        if current.get("action", "truncate") == "truncate":
            current.pop("low", None)  # it bounded rejection alone
    return current


def current_value(old: str, new: str, value: R) -> R:
    """The value of an argument under its old name, after a warning that points at the caller's caller."""
    _warn(old, new, 3)
    return value


def current_backend(name: str, stacklevel: int) -> str:
    """The current name of a backend. `stacklevel` is the caller's, for the warning.

    Raises:
        ValueError: a backend that is gone.
    """
    if name == "triton":
        raise ValueError('backend: "triton" is gone; use torch.compile around the call, or backend="auto".')
    if name != "compile":
        return name
    _warn('backend="compile"', 'backend="native"', stacklevel)
    return "native"


def _current(old: str, new: str, given: Mapping[str, object], stacklevel: int) -> str:
    """The new name, after a warning."""
    if new in given:
        raise ValueError(f"{old}: this is the old name of {new}, which is given too; drop {old}.")
    opposite = " (true on tokens that are left out, the opposite)" if old == _COUNTED else ""
    _warn(old, f"{new}{opposite}", stacklevel)
    return new


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(
        f"{old} has a new name, {new}; the old one goes in the next release.",
        FutureWarning,
        stacklevel=stacklevel + 1,
    )
