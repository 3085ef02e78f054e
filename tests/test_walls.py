"""The walls of the house: which room may import which, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ctpo"
# From the ground up; docs/architecture.md says why.
ROOMS = (
    *("errors", "statistics", "objectives", "theory", "sandbox", "tasks", "rollout"),
    *("evaluation", "training", "comparison", "report", "adapters", "cli", "__main__"),
)
FRAMEWORKS = {"trl", "verl", "skyrl", "nemo_rl", "tinker", "accelerate"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # What runs inside the sandbox is mounted there alone, so its imports are relative, and stay at home.
            assert node.level <= (path.parent.name == "inside"), f"{path}: imports are absolute here"
            found.add("" if node.level else node.module or "")
    return found


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    mine = room(path)
    assert mine in ROOMS, f"{mine} is a new room: give it a place in ROOMS and in docs/architecture.md"
    for name in imports(path):
        if name.startswith("ctpo."):
            other = name.split(".")[1]
            assert ROOMS.index(other) <= ROOMS.index(mine), f"{mine} imports {other}, which stands above it"
        if mine not in ("training", "adapters"):
            assert name.split(".")[0] not in FRAMEWORKS, f"{mine} imports the trainer framework {name}"


def test_report_reads_files_only() -> None:
    for path in SOURCE.joinpath("report").rglob("*.py"):
        for name in imports(path):
            assert not name.startswith("ctpo.") or name.split(".")[1] in ("errors", "statistics", "report")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import ctpo", {"torch", "trl", "transformers"}),
        (
            "import ctpo.objectives",
            {"trl", "transformers", "numpy.testing", "datasets", "yaml", "rich", "matplotlib"},
        ),
        ("import ctpo.tasks", {"torch", "trl", "transformers"}),
        ("import ctpo.sandbox", {"torch", "trl", "transformers", "numpy"}),
        ("import ctpo.cli.main; ctpo.cli.main.build_parser()", {"torch", "trl", "transformers"}),
    ],
)
def test_light_doors_stay_light(statement: str, absent: set[str]) -> None:
    """Imported in a fresh interpreter, because this one has everything loaded."""
    code = f"{statement}; import sys; print(*sorted(set(sys.modules) & {absent!r}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
