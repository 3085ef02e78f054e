"""How the C pass is compiled: its sources, and the flags for each kind of CPU.

The package's build (setup.py) and the build on first use (library.py) both read this file, so it imports nothing
but the standard library.
"""

from __future__ import annotations

import hashlib
import platform
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


def cpu_flags() -> dict[str, tuple[str, ...]]:
    """The flags for each kind of CPU that this machine's family has, by torch's names of the kinds.

    `torch.backends.cpu.get_cpu_capability()` returns these names; a name that is missing here takes "DEFAULT".
    """
    return dict(_X86_64) if platform.machine().lower() in ("x86_64", "amd64") else {"DEFAULT": ()}


def fingerprint(folder: Path, kind: str) -> str:
    """A digest of the sources in `folder` and of the flags for one kind of CPU.

    It is compiled into the library, which is only used while it fits the sources beside it.
    """
    digest = hashlib.sha256(repr((COMPILE, LINK, cpu_flags()[kind])).encode())
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:32]
