"""Small pieces of Markdown that several generated pages share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import MISSING
from typing import Any, Final

_ARXIV: Final = re.compile(r"\barXiv\s+(\d{4}\.\d{4,5})")
_PAGES: Final = re.compile(r"\bdocs/([\w-]+(?:/[\w-]+)*)\.md")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, with the bars in its cells escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(word) for word in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def shown(value: Any) -> str:
    """A default value as it is written in Python; `inf` and fractions are shortened to six digits."""
    if value is MISSING:
        return "computed"
    if isinstance(value, float):
        return f"`{value:.6g}`"
    return f"`{value!r}`"


def linked(text: str, root: str = "..") -> str:
    """The text with a link at each arXiv number and at each page of `docs/` that it names.

    Args:
        text: prose of a docstring or a help text.
        root: the way from the page to the folder of all pages.
    """
    text = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return _PAGES.sub(lambda found: f"[{found[1]}]({root}/{found[1]}.md)", text)


def escaped(text: str) -> str:
    """Prose of the source without what Markdown would read as emphasis or as a tag; code in backquotes stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<>\[\]|])", r"\\\1", part) for part in parts
    )
