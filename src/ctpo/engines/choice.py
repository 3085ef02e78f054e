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
_NAME, _ADDRESS, _PREFIX = ENGINE, "ray_address", f"{ENGINE}."


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine of a run, and what the recipe says to it directly."""

    name: str = LOCAL
    """`local` trains in this process, and `verl` on Ray."""
    ray_address: str | None = None
    """The address of a running Ray cluster; None starts Ray on this machine."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the engine's own configuration, in its own names. They are applied last."""


def split_engine(keys: Mapping[str, Any]) -> tuple[EngineChoice, dict[str, Any]]:
    """The engine that a recipe chooses, and the recipe's other keys.

    `engine` names the engine. `ray_address` and the keys that begin with `engine.` belong to the engine verl.

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
        if name not in (_NAME, _ADDRESS) and not str(name).startswith(_PREFIX)
    }
    name, address = keys.get(_NAME) or LOCAL, keys.get(_ADDRESS)
    overrides = {
        str(key).removeprefix(_PREFIX): _number(value)
        for key, value in keys.items()
        if str(key).startswith(_PREFIX)
    }
    if name not in ENGINES:
        raise UserError(f"engine={name!r} is unknown; use {' or '.join(ENGINES)}")
    if name == LOCAL and (address is not None or overrides):
        given = f"{_ADDRESS}={address}" if address is not None else f"{_PREFIX}{next(iter(overrides))}"
        raise UserError(f"{given} has no effect with engine={LOCAL}; set engine={VERL}, or drop it")
    if address is not None and not isinstance(address, str):
        raise UserError(f"{_ADDRESS}={address!r} is not of type str; write for example {_ADDRESS}=auto")
    return EngineChoice(name=str(name), ray_address=address, overrides=overrides), rest


def engine_keys(choice: EngineChoice) -> dict[str, Any]:
    """The keys of a recipe that make this choice; none for the engine `local`."""
    if choice.name == LOCAL:
        return {}
    address = {} if choice.ray_address is None else {_ADDRESS: choice.ray_address}
    return {
        _NAME: choice.name,
        **address,
        **{f"{_PREFIX}{key}": each for key, each in choice.overrides.items()},
    }


def _number(value: Any) -> Any:
    """The value, as a float if it is a text that holds a number: YAML 1.1 reads 1e-4 as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
