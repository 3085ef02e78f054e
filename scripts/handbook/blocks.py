"""The blocks of code in the pages: which there are, and which of them run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handbook.pages import ROOT

_BLOCK: Final = re.compile(
    r"(?:<!-- (?P<mark>not run|output): (?P<about>.*?) -->\n+)?"
    r"^(?P<fence>`{3,})(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One block of code."""

    page: Path
    """The file, from the repository's root on."""
    line: int
    language: str
    code: str
    why_not_run: str
    """The reason that the page gives; empty if the block runs."""
    output_of: str
    """The program, with its arguments, whose output this is; empty for another block."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def documents() -> list[Path]:
    """Every page that people read, from the repository's root on."""
    places = ("*.md", "docs/**/*.md", "recipes/*/*.md")
    return sorted(path.relative_to(ROOT) for place in places for path in ROOT.glob(place))


def blocks(language: str | None = None) -> Iterator[Block]:
    """The blocks of all pages in their order; those of one language if it is given."""
    for page in documents():
        text = (ROOT / page).read_text(encoding="utf-8")
        for found in _BLOCK.finditer(text):
            block = Block(
                page=page,
                line=text[: found.start("fence")].count("\n") + 1,
                language=found["language"],
                code=found["code"],
                why_not_run=found["about"] if found["mark"] == "not run" else "",
                output_of=found["about"] if found["mark"] == "output" else "",
            )
            if language is None or block.language == language:
                yield block


def commands(code: str) -> Iterator[str]:
    """The command lines of a block: continued lines joined, prompts, comments and what a pipe does left out."""
    for line in code.replace("\\\n", " ").splitlines():
        words = re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ")
        for part in words.split(" && "):
            if part:
                yield part.split(" | ")[0].split(" > ")[0].strip()
