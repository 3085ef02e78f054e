"""Every warning and every error of the library, read from its source.

A value that a message puts in is shown as `…`, or as the name of what it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import ctpo
from handbook.markdown import escaped, linked

SOURCE: Final = Path(ctpo.__file__).parent
_WARN: Final = ("warn", "warn_explicit", "_warn", "_warn_once")
_ROOMS: Final = {
    "": "Everywhere",
    "objectives": "Objectives",
    "training": "Training",
    "tasks": "Tasks",
    "rollout": "Rollouts",
    "evaluation": "Evaluation",
    "sandbox": "Sandbox",
    "runs": "Files of runs",
    "adapters": "Adapters",
    "engines": "Other engines",
    "lab": "Theory, fidelity and comparisons",
    "report": "Reports",
    "cli": "Commands",
    "cpu": "CPU",
}
"""The rooms of the library in the order of the page, with their headings."""
_INTRODUCTION: Final = """\
# Errors and warnings

This page lists every message of the library. It is made from the code. `…` stands for a value, and a word in braces
for the value of that name. A message says what was wrong, and after the semicolon how to correct it. Search for the
words around the values. [Troubleshooting](../how-to/troubleshooting.md) says more about the warnings and about the
errors that people meet first.
"""


@dataclass(frozen=True)
class Message:
    """One place in the source that warns or raises."""

    path: str
    """The file, from the package's folder on."""
    line: int
    kind: str
    """The class of the error, or `warning`."""
    text: str
    """The message, with `…` or `{name}` for each value; empty if it is made elsewhere."""

    @property
    def room(self) -> str:
        """The room in which the file lies; empty for files beside the rooms."""
        return self.path.partition("/")[0] if "/" in self.path else ""


@cache
def messages() -> tuple[Message, ...]:
    """All messages, in the order of the files."""
    return tuple(
        each
        for path in sorted(SOURCE.rglob("*.py"))
        if "inside" not in path.parts  # runs beside a model's program
        for each in _of_file(path)
    )


def warnings() -> list[Message]:
    """The places that warn."""
    return [each for each in messages() if each.kind == "warning"]


def page() -> str:
    """The whole page in Markdown."""
    parts = [_INTRODUCTION]
    for room, heading in _ROOMS.items():
        ours = {(each.kind, each.text) for each in messages() if each.room == room and len(each.text) > 12}
        if ours:
            parts.append(f"## {heading}\n")
            parts += [f"- *{kind}*: {linked(escaped(text))}" for kind, text in sorted(ours)]
            parts.append("")
    return "\n".join(parts)


def _of_file(path: Path) -> Iterator[Message]:
    place = path.relative_to(SOURCE).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            kind = ast.unparse(node.exc.func)
            if kind.endswith(("Error", "Extra", "Unavailable", "Failed", "Updates", "File")):
                yield Message(place, node.lineno, kind, _template(node.exc.args[0]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in _WARN:
            # `_warn(subject, message)` of some modules has its message second.
            texts = [text for text in map(_template, node.args) if len(text) > 20]
            yield Message(place, node.lineno, "warning", texts[0] if texts else "")


def _template(node: ast.expr) -> str:
    """The text of an expression, with marks in place of the values that it puts in; empty if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return " ".join(node.value.split())
    if isinstance(node, ast.JoinedStr):
        parts = [
            each.value if isinstance(each, ast.Constant) else _value(each.value)  # type: ignore[attr-defined]
            for each in node.values
        ]
        return " ".join("".join(map(str, parts)).split())
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{_template(node.left)} {_template(node.right)}".strip()
    return ""


def _value(node: ast.expr) -> str:
    """The mark for a value: its name in braces if it is a plain name, and otherwise `…`."""
    return f"{{{node.id}}}" if isinstance(node, ast.Name) else "…"
