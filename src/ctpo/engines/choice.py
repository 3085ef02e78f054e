"""Which engine runs a recipe, read from its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.training.config.recipe import ENGINE

LOCAL: Final = "local"
VERL: Final = "verl"
ENGINES: Final = (LOCAL, VERL)
SYNC: Final = "sync"
ASYNC: Final = "separate_async"
MODES: Final = (SYNC, ASYNC)
_NAME, _ADDRESS, _PREFIX = ENGINE, "ray_address", f"{ENGINE}."
_MODE, _SERVERS, _STALENESS = "trainer_mode", "rollout_processes", "max_staleness"
_OWN: Final = (_ADDRESS, _MODE, _SERVERS, _STALENESS)


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine of a run, and what the recipe says to it directly."""

    name: str = LOCAL
    """`local` trains in this process, and `verl` on Ray."""
    ray_address: str | None = None
    """The address of a running Ray cluster; None starts Ray on this machine."""
    trainer_mode: str = SYNC
    """`sync` samples and trains in turn. `separate_async` samples in other processes while it trains."""
    rollout_processes: int = 1
    """How many processes only sample, on each machine, with `separate_async`."""
    max_staleness: int = 2
    """By how many versions of the weights a response may lag behind, with `separate_async`. Older ones are dropped.
    A version is made once per rollout batch."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the engine's own configuration, in its own names. They are applied last."""


def split_engine(keys: Mapping[str, Any]) -> tuple[EngineChoice, dict[str, Any]]:
    """The engine that a recipe chooses, and the recipe's other keys.

    `engine` names the engine. `ray_address`, `trainer_mode`, `rollout_processes`, `max_staleness` and the keys that
    begin with `engine.` belong to the engine verl.

    Raises:
        UserError: if the engine is unknown, or a key belongs to an engine that does not run.

    Example:
        >>> choice, rest = split_engine({"engine": "verl", "engine.trainer.nnodes": 2, "seed": 1})
        >>> choice.overrides, rest
        ({'trainer.nnodes': 2}, {'seed': 1})
    """
    rest = {
        name: value
        for name, value in keys.items()
        if name not in (_NAME, *_OWN) and not str(name).startswith(_PREFIX)
    }
    name, own = keys.get(_NAME) or LOCAL, {key: keys[key] for key in _OWN if keys.get(key) is not None}
    overrides = {
        str(key).removeprefix(_PREFIX): _number(value)
        for key, value in keys.items()
        if str(key).startswith(_PREFIX)
    }
    if name not in ENGINES:
        raise UserError(f"engine={name!r} is unknown; use {' or '.join(ENGINES)}")
    if name == LOCAL and (own or overrides):
        key, value = next(iter((own or {f"{_PREFIX}{key}": each for key, each in overrides.items()}).items()))
        raise UserError(f"{key}={value} has no effect with engine={LOCAL}; set engine={VERL}, or drop it")
    _check(own)
    return EngineChoice(name=str(name), **own, overrides=overrides), rest


def _check(own: Mapping[str, Any]) -> None:
    """Check the types and ranges of these keys, and that each has an effect.

    Raises:
        UserError: for the first that is wrong.
    """
    address, mode = own.get(_ADDRESS), own.get(_MODE, SYNC)
    if address is not None and not isinstance(address, str):
        raise UserError(f"{_ADDRESS}={address!r} is not of type str; write for example {_ADDRESS}=auto")
    if mode not in MODES:
        raise UserError(f"{_MODE}={mode!r} is unknown; use {' or '.join(MODES)}")
    for name in (_SERVERS, _STALENESS):
        value = own.get(name)
        if value is None:
            continue
        if mode != ASYNC:
            raise UserError(
                f"{name}={value} has no effect with {_MODE}={mode}; set {_MODE}={ASYNC}, or drop it"
            )
        if type(value) is not int or value < 1:
            raise UserError(f"{name}={value!r} is out of range; use a whole number from 1 up")


def engine_keys(choice: EngineChoice) -> dict[str, Any]:
    """The keys of a recipe that make this choice; none for the engine `local`."""
    if choice.name == LOCAL:
        return {}
    standard = EngineChoice()
    own = {key: getattr(choice, key) for key in _OWN if getattr(choice, key) != getattr(standard, key)}
    return {_NAME: choice.name, **own, **{f"{_PREFIX}{key}": each for key, each in choice.overrides.items()}}


def _number(value: Any) -> Any:
    """The value, as a float if it is a text that holds a number: YAML 1.1 reads 1e-4 as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
