"""The pages of the Python API. mkdocstrings fills them from the docstrings; here stands which names there are."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final

import ctpo

SOURCE: Final = Path(ctpo.__file__).parent

_INSIDE: Final = ("guards", "shared", "zigzag", "completions", "verifiers_v1")
"""Modules of adapters that others of them use."""


def _adapters() -> tuple[str, ...]:
    """The modules of all adapters, those of environments last."""
    return tuple(
        ".".join(("ctpo", *path.relative_to(SOURCE).with_suffix("").parts))
        for folder in (SOURCE / "adapters", SOURCE / "adapters" / "environments")
        for path in sorted(folder.glob("*.py"))
        if path.stem != "__init__" and path.stem.strip("_") not in _INSIDE
    )


PAGES: Final[dict[str, tuple[str, ...]]] = {
    "trainer": ("ctpo",),
    "objectives": ("ctpo.objectives",),
    "parts": (
        "ctpo.objectives.ratios",
        "ctpo.objectives.clipped_mean",
        "ctpo.objectives.trust_regions",
        "ctpo.objectives.divergences",
        "ctpo.objectives.prefix_budget",
        "ctpo.objectives.second_moment",
        "ctpo.objectives.quantile_gate",
        "ctpo.objectives.surrogates",
        "ctpo.objectives.soft_surrogates",
        "ctpo.objectives.reductions",
    ),
    "advantages": ("ctpo.objectives.advantages", "ctpo.objectives.penalties"),
    "tasks": ("ctpo.tasks", "ctpo.tasks.environment", "ctpo.tasks.arithmetic", "ctpo.tasks.math"),
    "rollouts": ("ctpo.rollout",),
    "training": ("ctpo.training", "ctpo.training.scoring"),
    "evaluation": ("ctpo.evaluation",),
    "sandbox": ("ctpo.sandbox",),
    "adapters": _adapters(),
    "lab": ("ctpo.lab.theory", "ctpo.lab.fidelity"),
}
"""The modules of each page. A module without `__all__` offers what it defines and does not begin with `_`."""

TITLES: Final = {
    "trainer": "ctpo",
    "objectives": "ctpo.objectives",
    "parts": "Parts of an objective",
    "advantages": "Advantages and penalties",
    "tasks": "ctpo.tasks",
    "rollouts": "ctpo.rollout",
    "training": "ctpo.training",
    "evaluation": "ctpo.evaluation",
    "sandbox": "ctpo.sandbox",
    "adapters": "ctpo.adapters",
    "lab": "ctpo.lab",
}


def page(name: str) -> str:
    """One page in Markdown, with a block of mkdocstrings for each public name."""
    lines = [f"# {TITLES[name]}\n"]
    for module in PAGES[name]:
        lines += [f"## {module} {{ #module-{module} }}\n", *_about(module), ""]
        lines += [f"::: {module}.{each}\n" for each in public_names(module)]
    return "\n".join(lines)


@cache
def public_names(module: str) -> tuple[str, ...]:
    """The names that a module offers: its `__all__`, or what it defines itself without a leading underscore."""
    tree = ast.parse(_file_of(module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(name for name in ast.literal_eval(node.value) if name != "__version__")
    return tuple(
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    )


def modules_with_all() -> list[str]:
    """Every module of the package that says by `__all__` what it offers."""
    return sorted(
        ".".join(("ctpo", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for path in SOURCE.rglob("*.py")
        if "\n__all__" in path.read_text(encoding="utf-8")
    )


def _about(module: str) -> list[str]:
    """The first paragraph of the docstring of a module."""
    text = ast.get_docstring(ast.parse(_file_of(module).read_text(encoding="utf-8"))) or ""
    return [text.split("\n\n")[0]]


def _file_of(module: str) -> Path:
    path = SOURCE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
