"""The walls of the house: which room may import which, and that no imports go in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ctpo"
# From the ground up; docs/explanation/architecture.md says why.
ROOMS = (
    *(
        "version",
        "old_names",
        "errors",
        "extras",
        "objectives",
        "sandbox",
        "cpu",
        "fast_cpu",
        "runs",
        "tasks",
        "rollout",
    ),
    *("evaluation", "training", "adapters", "engines", "report", "lab", "cli", "__main__"),
)
FRAMEWORKS = {"trl", "verl", "skyrl", "nemo_rl", "tinker", "accelerate"}
FILES = sorted(SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name of a source file, such as `ctpo.objectives.ratios`."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(source: str, folder: str) -> set[str]:
    """Every module that a source text imports: at its head, under TYPE_CHECKING, and inside functions.

    `from package import name` counts as the module `package.name` where that is one, and as the package otherwise.
    Relative imports start from `folder`, a dotted name.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # What runs inside the sandbox is mounted there alone, so its imports are relative and stay in its folder.
            assert node.level <= folder.endswith(".inside"), f"{folder}: write absolute imports here"
            package = ".".join(part for part in (folder if node.level else "", node.module) if part)
            inner = {f"{package}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else package for name in inner}
    return names


IMPORTS = {
    module: imports(path.read_text(encoding="utf-8"), module_of(path.parent / "__init__.py"))
    for module, path in MODULES.items()
}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    mine = room(module_of(path))
    if not mine:  # the package's own door, which opens every room on demand
        return
    assert mine in ROOMS, (
        f"{mine} is a new room: give it a place in ROOMS and in docs/explanation/architecture.md"
    )
    for name in IMPORTS[module_of(path)]:
        if name.split(".")[0] == "ctpo" and room(name):
            assert ROOMS.index(room(name)) <= ROOMS.index(mine), (
                f"{mine} imports {name}, which stands above it"
            )
        if mine not in ("training", "adapters", "engines"):
            assert name.split(".")[0] not in FRAMEWORKS, f"{mine} imports the trainer framework {name}"


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: names & MODULES.keys() for module, names in IMPORTS.items()}
    # A module without imports among those that are left cannot be part of a circle. What is never freed is.
    while free := [module for module, needed in graph.items() if not needed & graph.keys()]:
        for module in free:
            del graph[module]
    # Neither can a module that nobody of them imports.
    while free := graph.keys() - set().union(*graph.values()):
        for module in free:
            del graph[module]
    circles = {module: sorted(needed & graph.keys()) for module, needed in sorted(graph.items())}
    assert not circles, "\n".join(
        f"{module} imports {', '.join(needed)}" for module, needed in circles.items()
    )


def test_every_kind_of_import_is_seen() -> None:
    source = """
from typing import TYPE_CHECKING
from ctpo.objectives import Objective, checks
if TYPE_CHECKING:
    from ctpo.errors import UserError
def later():
    import ctpo.rollout.chat
"""
    seen = {name for name in imports(source, "ctpo.cli") if name.startswith("ctpo")}
    assert seen == {"ctpo.objectives", "ctpo.objectives.checks", "ctpo.errors", "ctpo.rollout.chat"}


def test_one_door_leads_to_the_folder_that_may_be_deleted() -> None:
    for module, names in IMPORTS.items():
        ours = {name for name in names if name.split(".")[0] == "ctpo"}
        if room(module) == "cpu":
            assert not ours, f"{module} imports {ours}, but ctpo.cpu must stand alone"
        elif module != "ctpo.fast_cpu":
            assert not {name for name in ours if room(name) == "cpu"}, (
                f"{module}: import ctpo.fast_cpu instead"
            )


def test_reports_read_only_what_runs_left_on_disk() -> None:
    for module, names in IMPORTS.items():
        for name in names if room(module) == "report" else ():
            assert not name.startswith("ctpo.") or room(name) in (
                "version",
                "errors",
                "extras",
                "runs",
                "report",
            ), f"{module} imports {name}"


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
