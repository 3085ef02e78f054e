"""How the C pass is compiled: its sources, the flags for each kind of CPU, and the compiler's command.

The package's build (setup.py) and the build on first use (library.py) both read this file, so it imports nothing
but the standard library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
from pathlib import Path
from typing import Final

SOURCES: Final = ("native.c", "native_sequence.h")

COMPILE: Final = (
    "-O3",
    "-g0",
    "-fPIC",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-pthread",
)
"""No flag that reorders sums or assumes that there is no NaN. Only loops that declare a sum may reorder it."""

LINK: Final = ("-shared", "-pthread", "-lm")

_X86_64: Final = {
    "DEFAULT": (),
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
}


def cpu_flags(machine: str = "") -> dict[str, tuple[str, ...]]:
    """The flags for each kind of CPU that a family of machines has, by torch's names of the kinds.

    `machine` is the family as `platform.machine()` names it. Without it, the family is this machine's.

    `torch.backends.cpu.get_cpu_capability()` returns these names; a name that is missing here takes "DEFAULT".
    """
    machine = machine or platform.machine()
    return dict(_X86_64) if machine.lower() in ("x86_64", "amd64") else {"DEFAULT": ()}


def fingerprint(folder: Path, kind: str, machine: str = "") -> str:
    """A digest of the sources in `folder` and of the flags for one kind of CPU.

    It is compiled into the library, which is only used while it fits the sources beside it.
    """
    digest = hashlib.sha256(repr((COMPILE, LINK, cpu_flags(machine)[kind])).encode())
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:32]


def compiler() -> list[str]:
    """The command of this machine's C compiler: what CC names, else cc, gcc or clang; empty if there is none."""
    return shlex.split(os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None) or "")


def arguments(folder: Path, kind: str, target: Path, machine: str = "") -> list[str]:
    """The compiler's arguments that make the library for one kind of CPU from the sources in `folder`."""
    defined = f'-DCTPO_SOURCES="{fingerprint(folder, kind, machine)}"'
    flags = [*COMPILE, *cpu_flags(machine)[kind], defined]
    return [*flags, "-o", str(target), str(folder / SOURCES[0]), *LINK]
