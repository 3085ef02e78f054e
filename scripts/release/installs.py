"""`make try-dist`: installs what `make dist` built into fresh environments, tries it, and prints what each extra takes.

All environments see the packages of a first one, which holds torch and numpy. So a figure is what comes on top of these
two, without the package itself. Extras that bring `train` are installed on top of an environment with `train`, and
their figures hold both.
Words on the command line choose extras; without any, all are tried.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CONSTRAINTS: Final = ROOT / "constraints.txt"
PIP: Final = ("-m", "pip", "--disable-pip-version-check", "--quiet")
C_PASS: Final = str(Path(__file__).parent / "c_pass.py")

SANDBOX: Final = """
from ctpo.sandbox import Sandbox
with Sandbox(engine="bubblewrap", workers=1) as sandbox:
    assert sandbox.run(["print(6 * 7)"])[0].stdout == "42\\n"
"""
MATH: Final = """
from ctpo.tasks.math import MathCheck
assert MathCheck()(r"\\boxed{(x - 1)(x + 1)}", "x^2 - 1")
"""
PAIRED: Final = """
import psutil
from scipy.stats import wilcoxon
from ctpo.cli.main import main
raise SystemExit(main(["compare", "missing.yaml"]) != 2)
"""
GGUF: Final = """
import gguf
from ctpo.cli.main import main
raise SystemExit(main(["recipes", "smollm2-tool"]))
"""


@dataclass(frozen=True)
class Extra:
    """One extra: what it is installed on top of, and the words after `python` that try it."""

    on: str
    words: tuple[str, ...]


ONE_BATCH: Final = ("-m", "ctpo", "train", "rollout_batches=1", "eval_problems=8")
EXTRAS: Final = {
    "sandbox": Extra("", ("-c", SANDBOX)),
    "report": Extra("", ("-m", "ctpo", "theory", "--horizon", "4", "--figure", "theory.png")),
    "math": Extra("", ("-c", MATH)),
    "reasoning-gym": Extra("", ("-m", "ctpo", "task", "check", "reasoning_gym:gcd", "--problems", "4")),
    "train": Extra("", (*ONE_BATCH, "output_dir=run")),
    "compare": Extra("train", ("-c", PAIRED)),
    "peft": Extra("train", (*ONE_BATCH, "output_dir=lora", "use_peft=true")),
    "smollm2": Extra("train", ("-c", GGUF)),
    "all": Extra("train", ("-m", "pip", "check")),
}


class Environment:
    """A fresh environment in a folder, which sees the packages of others."""

    def __init__(self, folder: Path, *below: Environment) -> None:
        venv.create(folder, with_pip=True)
        self.folder = folder
        self.program = folder / "bin" / "python"
        (self.packages,) = folder.glob("lib/python*/site-packages")
        if below:  # some versions of Python bring one, which would be renewed and counted
            self.run(*PIP, "uninstall", "--yes", "setuptools")
        self._new = set(self.packages.iterdir())
        lines = "".join(f"import site; site.addsitedir({str(each.packages)!r})\n" for each in below)
        (self.packages / "below.pth").write_text(lines)
        self._new.add(self.packages / "below.pth")

    def run(self, *words: str) -> str:
        """What this environment's Python prints; its errors end the whole.

        Raises:
            SystemExit: the program failed.
        """
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [self.program, *words],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
        if done.returncode:
            sys.exit(f"python {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def install(self, *what: str) -> None:
        """Install packages as constraints.txt pins them, without bytecode."""
        self.run(*PIP, "install", "--no-compile", "--constraint", str(CONSTRAINTS), *what)

    def size(self, *, own: bool = False) -> tuple[int, float]:
        """The packages installed here and not below, and the megabytes of their files.

        Args:
            own: whether this package is counted too.
        """
        added = [
            path
            for path in self.packages.iterdir()
            if path not in self._new and (own or path.name.split("-")[0] != "ctpo")
        ]
        files = [
            file for top in added for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()
        ]
        return sum(path.suffix == ".dist-info" for path in added), sum(
            file.stat().st_size for file in files
        ) / 1e6


def main(chosen: list[str]) -> int:
    """Try all, and print a table in Markdown. Returns the exit code."""
    (pure,) = (ROOT / "dist").glob("*-none-any.whl")
    (fast,) = (ROOT / "dist").glob(f"*{platform.machine()}.whl")
    (archive,) = (ROOT / "dist").glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="ctpo-") as folder:
        base = Environment(Path(folder) / "base")
        index = os.environ.get("TORCH_INDEX")
        base.install(*(["--index-url", index] if index else []), "torch")
        base.install("numpy", "setuptools")
        print(f"torch and numpy: {base.size()[1]:.0f} MB, {base.size()[0]} packages", flush=True)
        if not chosen:
            for place, what in {"pure": [pure], "archive": [archive], "wheel": [fast]}.items():
                plain = Environment(Path(folder) / place, base)
                plain.install("--no-build-isolation", *map(str, what))
                print(f"{what[0].name}: {plain.size(own=True)[1]:.1f} MB; {plain.run(C_PASS)}", flush=True)
        print("\n| extra | packages | MB |\n|---|---|---|")
        layers: dict[str, Environment] = {}
        for name in chosen or EXTRAS:
            extra = EXTRAS[name]
            below = [layers[extra.on]] if extra.on in layers else []
            layers[name] = Environment(Path(folder) / name, base, *below)
            layers[name].install(f"ctpo[{name}] @ {fast.as_uri()}")
            packages, megabytes = map(
                sum, zip(*(each.size() for each in (layers[name], *below)), strict=True)
            )
            layers[name].run(*extra.words)
            print(f"| `{name}` | {packages} | {megabytes:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
