"""What a file from somebody else may not decide alone.

A recipe, a comparison's plan and a run's directory are data. Some settings in them do more than shape a run: they run
code, switch isolation off, or send data to another machine. Such a setting counts only if the command line has it too,
or with `--trust`. What a Python script passes to `CTPOConfig` is the user's own word and is not asked about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ctpo.errors import UserError
from ctpo.runs.directory import RunDirectory
from ctpo.runs.files import foreign_entries
from ctpo.runs.script import Script
from ctpo.tasks.registry import runs_code
from ctpo.training.config.recipe import ENGINE

_LOCAL_LOGGERS: Final = {"none", "tensorboard", "trackio"}
_THIS_MACHINE: Final = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
_SENDS: Final = "sends data of the run to somebody's account"
_RUNS: Final = "runs code that comes with a model"
_LOADING: Final[Mapping[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("dtype", "torch_dtype", "revision", "low_cpu_mem_usage", "use_cache"), lambda value: True
    ),
    "attn_implementation": lambda value: value in ("eager", "sdpa", "flash_attention_2", "flex_attention"),
    "trust_remote_code": lambda value: value is False,
    "use_safetensors": lambda value: value is True,
    "weights_only": lambda value: value is True,
}
"""Entries of `model_init_kwargs` that a file may set, each with the values that are harmless. transformers has dozens
of others, and some load pickles or code."""


def _given(value: Any) -> bool:
    return value not in (None, False)


_ASKED: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "task": (lambda value: isinstance(value, str) and runs_code(value), "runs the code of that file"),
    "tools": (bool, "runs the code of these functions"),
    "unsafe_no_isolation": (_given, "lets programs that a model writes do whatever you can"),
    "trust_remote_code": (_given, _RUNS),
    "deepspeed": (_given, "writes to places of its own, and reads checkpoints that can hold code"),
    "shared": (_given, "takes tool answers and figures from files there, and writes to them"),
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_model_id", "log_completions_hub_repo"),
            *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ),
        (_given, _SENDS),
    ),
    "ray_address": (_given, "sends the run, with its code and data, to that cluster"),
    "report_to": (lambda value: not _LOCAL_LOGGERS.issuperset(_words(value)), _SENDS),
    "vllm_server_base_url": (lambda value: _given(value) and _host(value) not in _THIS_MACHINE, _SENDS),
    "vllm_server_host": (lambda value: _given(value) and str(value) not in _THIS_MACHINE, _SENDS),
}
"""Settings that are asked about: which of their values, and what those do."""
_ENGINE: Final[tuple[Callable[[Any], bool], str]] = (
    lambda value: value is True or not isinstance(value, bool | int | float | None),
    "is a setting of another library, some of which run code or switch protection off",
)
"""The same of every setting of an engine. Numbers are harmless."""


def check_recipe(
    keys: Mapping[str, Any], given: Mapping[str, Any], source: Path, *, own: str | None = None
) -> None:
    """Refuse a setting that only the command line may decide.

    Args:
        keys: the settings of the file, with those of the command line applied.
        given: the settings of the command line.
        source: the file.
        own: what this command takes in place of `key=value`; "" if it has no such words.

    Raises:
        UserError: naming the file, the setting, its value, what it does, and how to allow it.
    """
    for name, value, what in _powers(keys):
        if _said(given, name):
            continue
        written = value if isinstance(value, str) else json.dumps(value, default=str)
        words = f"{name}={written}" if own is None else own
        write = f"write {words} on the command line, or " if words else ""
        raise UserError(f"{source} sets {name}: {written}, which {what}; if you trust it, {write}add --trust")


def names_code(keys: Mapping[str, Any]) -> bool:
    """Return whether the settings name a file of tasks or functions of the user's own."""
    return any(_ASKED[name][0](keys.get(name)) for name in ("task", "tools"))


def check_run(run: RunDirectory, keys: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose directory asks for more than data may.

    Args:
        run: the run's directory.
        keys: its settings, with those of the command line applied.
        given: the settings of the command line.

    Raises:
        UserError: for a setting as in `check_recipe`, for a link that leads out of the directory (it would be written
            through), and for a checkpoint in a format that can hold code.
    """
    check_recipe(keys, given, run.config)
    for path, what in foreign_entries(run.path):
        raise UserError(f"{path} is {what}; if you trust it, add --trust, or else remove it")
    for pattern in ("checkpoint-*/**/.metadata", "checkpoint-*/global_step*", "verl/global_step*"):
        for path in run.path.glob(pattern):
            raise UserError(
                f"{path} belongs to a sharded checkpoint, a format that can hold code; if it is your own, add --trust"
            )


def check_script(run: RunDirectory, script: Script) -> None:
    """Refuse to run the script again that a run's directory names.

    Raises:
        UserError: naming the script, and how to allow it.
    """
    what = script.file or "Python"
    raise UserError(
        f"{run.config} names the script {what}, which --resume would run again; if you trust it, add --trust"
    )


def _powers(keys: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield each setting that is asked about: its name, its value, and what it does."""
    for name, value in keys.items():
        asked = _ENGINE if str(name).startswith(f"{ENGINE}.") else _ASKED.get(name)
        if name == "hub_model_id" and not _given(keys.get("push_to_hub")):
            continue
        if asked is not None:
            if asked[0](value):
                yield name, value, asked[1]
            continue
        for inner, setting in _mapping(value).items():
            if name == "model_init_kwargs":
                if not _LOADING.get(inner, lambda value: False)(setting):
                    yield f"{name}.{inner}", setting, "decides how the model is loaded, which can run code"
            elif any(key == "trust_remote_code" and _given(each) for key, each in _flat({inner: setting})):
                yield f"{name}.{inner}", setting, _RUNS


def _said(given: Mapping[str, Any], name: str) -> bool:
    """Return whether the command line has this setting."""
    outer, _, inner = name.partition(".")
    return name in given or (outer in given and (not inner or inner in _mapping(given[outer])))


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, which may also be written as JSON text; an empty one for any other value."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {value: value}  # not JSON, and not taken for harmless
    return {str(key): each for key, each in value.items()} if isinstance(value, Mapping) else {}


def _flat(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a mapping and of every mapping and list in it, however deep."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            yield from ((str(key), inner) for key, inner in each.items())
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def _words(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(each).strip().lower() for each in values if _given(each)]


def _host(url: Any) -> str | None:
    try:
        return urlsplit(str(url)).hostname
    except ValueError:
        return None
