"""Builds the C pass of the objectives with the package, for each kind of CPU that the machine's family has.

Everything else stands in pyproject.toml. The libraries are optional: without a C compiler the package installs, and
the objectives run their definition in torch.
"""

import os
import runpy
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("src/ctpo/objectives/cpu")
RECIPE = runpy.run_path(str(FOLDER / "compile_flags.py"))


def library(kind: str, flags: tuple[str, ...]) -> Extension:
    """The library for one kind of CPU. It has no Python in it; library.py loads it with ctypes."""
    source, *headers = (str(FOLDER / name) for name in RECIPE["SOURCES"])
    fingerprint = RECIPE["fingerprint"](FOLDER, kind)
    return Extension(
        f"ctpo.objectives.cpu.native_{kind.lower()}",
        sources=[source],
        depends=headers,
        extra_compile_args=[*RECIPE["COMPILE"], *flags, f'-DCTPO_SOURCES="{fingerprint}"'],
        extra_link_args=list(RECIPE["LINK"]),
        optional=True,
    )


def shipped() -> list[tuple[str, list[str]]]:
    """The recipes and examples, which `ctpo recipes` lists and copies: each folder with its files."""
    kinds = (".md", ".overrides", ".py", ".sh", ".yaml")
    files: dict[str, list[str]] = {}
    for path in sorted(path for folder in ("recipes", "examples") for path in Path(folder).rglob("*")):
        if path.suffix in kinds:
            files.setdefault(f"share/ctpo/{path.parent.as_posix()}", []).append(path.as_posix())
    return list(files.items())


# `make dist` sets CTPO_PURE for a wheel that every system takes.
KINDS = {} if os.environ.get("CTPO_PURE") else RECIPE["cpu_flags"]()
setup(ext_modules=[library(kind, flags) for kind, flags in KINDS.items()], data_files=shipped())
