"""Builds the C pass of the objectives with the package, for each kind of CPU that the machine's family has.

Everything else stands in pyproject.toml. The C pass has no Python in it, and library.py loads it with ctypes. So one
wheel per processor serves every version of Python. The libraries are optional: without a C compiler the package
installs, and the objectives run their definition in torch.

`make dist` sets CTPO_WHEEL for the wheels of a release:

- "pure": without the C pass, for every system. It is then compiled on first use, where there is a compiler.
- "x86_64" or "aarch64": for every Linux with such a processor and glibc 2.17 or newer. The compiler of the package
  ziglang makes it on any machine, and the build fails if it cannot.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FOLDER = Path("src/ctpo/objectives/cpu")
RECIPE = runpy.run_path(str(FOLDER / "compile_flags.py"))
WHEEL = os.environ.get("CTPO_WHEEL", "")
MACHINE = "" if WHEEL == "pure" else WHEEL  # empty is this one
if WHEEL not in ("", "pure", "x86_64", "aarch64"):
    sys.exit(f"CTPO_WHEEL={WHEEL}: this is no kind of wheel; use pure, x86_64 or aarch64.")


class BuildLibraries(build_ext):
    """Compiles each library by the command that library.py would use, under a name without Python's version."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        command = RECIPE["compiler"]()
        if MACHINE:
            command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{MACHINE}-linux-gnu.2.17", "-s"]
        if not command:
            raise CompileError("there is no C compiler")
        kind = ext.name.rpartition("native_")[2].upper()
        command += RECIPE["arguments"](FOLDER, kind, target, MACHINE)
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise CompileError(str(error)) from None
        if done.returncode:
            raise CompileError(f"{command[0]} failed: {done.stderr[-2000:]}")


class Wheel(bdist_wheel):
    """Names the wheel by the processor alone."""

    def get_tag(self) -> tuple[str, str, str]:
        system = f"manylinux_2_17_{MACHINE}.manylinux2014_{MACHINE}" if MACHINE else super().get_tag()[2]
        return "py3", "none", system


def libraries() -> list[Extension]:
    """One library for each kind of CPU."""
    sources, *headers = (str(FOLDER / name) for name in RECIPE["SOURCES"])
    return [
        Extension(
            f"ctpo.objectives.cpu.native_{kind.lower()}",
            sources=[sources],
            depends=headers,
            optional=not MACHINE,
        )
        for kind in RECIPE["cpu_flags"](MACHINE)
    ]


def shipped() -> list[tuple[str, list[str]]]:
    """The recipes and examples, which `ctpo recipes` lists and copies: each folder with its files."""
    kinds = (".md", ".overrides", ".py", ".sh", ".yaml")
    files: dict[str, list[str]] = {}
    for path in sorted(path for folder in ("recipes", "examples") for path in Path(folder).rglob("*")):
        if path.suffix in kinds:
            files.setdefault(f"share/ctpo/{path.parent.as_posix()}", []).append(path.as_posix())
    return list(files.items())


setup(
    ext_modules=[] if WHEEL == "pure" else libraries(),
    data_files=shipped(),
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
