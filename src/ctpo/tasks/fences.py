"""Programs in fenced blocks, as chat models write them.

Models open a block of Python with three backticks and `python`, but also with `py`, `Python` or `python3`, with a space
after the fence, or with `~~~`. They indent blocks in lists, and some put the closing fence behind the last statement.
All of these are read as the model meant them. Other languages, and blocks without a language, are no programs.

A block of the language `tool_call` holds a call of another function, as a JSON object.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

PYTHON, CALL = "python", "tool_call"
"""The languages of blocks that are read: programs, and calls of other functions."""
CHARACTERS: Final = "`~"
"""The characters of which fences are made. A text can end a block only where one of them stands."""
STOPS: Final = ("\n```", "\n~~~", "```\n", "~~~\n")
"""Texts of which one stands at the end of every block, for servers that take stop texts."""

# The lookbehind lets a run of fence characters be tried once, at its start, so that long runs take linear time.
_OPENING: Final = re.compile(
    r"(?P<lead>^[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)?(?P<fence>(?<![`~])(?:`{3,}|~{3,}))[ \t]*"
    r"(?:(?P<call>tool_call)|(?:i?python|py)(?:\d(?:\.\d+)?)?)(?P<rest>(?![\w.+#-])[^\n`~]*)\n",
    re.IGNORECASE | re.MULTILINE,
)
_ATTRIBUTES: Final = re.compile(r"\s*[{:].*|\s*\w+=.*")
"""What may follow the language and is no code: `{.line-numbers}`, `:main.py`, `title="x"`."""


@dataclass(frozen=True)
class Block:
    """A fenced block of Python, or of a call."""

    program: str
    """What stands between the fences."""
    language: str
    """`PYTHON` or `CALL`."""
    start: int
    """Where the opening fence's line begins in the text, without its indentation."""
    end: int
    """Where the block ends in the text, closing fence included; the end of the text if it is not closed."""
    closed: bool


def opens_block(text: str) -> bool:
    """Return whether the text holds the opening fence of a Python block, with its line feed."""
    return next(_openings(text, (PYTHON,)), None) is not None


def first_block(text: str, languages: Sequence[str] = (PYTHON,)) -> Block | None:
    """Return the first block of one of these languages, or None."""
    opening = next(_openings(text, languages), None)
    return None if opening is None else _block(text, opening)


def last_block(text: str, languages: Sequence[str] = (PYTHON,)) -> Block | None:
    """Return the last block of one of these languages, or None."""
    openings = list(_openings(text, languages))
    return _block(text, openings[-1]) if openings else None


def program_of(body: str) -> str:
    """Return the program that stands between two fences, without an indentation that all of its lines share."""
    return textwrap.dedent(body.removeprefix("\n"))


def _openings(text: str, languages: Sequence[str]) -> Iterator[re.Match[str]]:
    return (match for match in _OPENING.finditer(text) if _is_fence(match) and _language(match) in languages)


def _language(opening: re.Match[str]) -> str:
    return CALL if opening["call"] else PYTHON


def _is_fence(match: re.Match[str]) -> bool:
    """Return whether it is a fence and no mention of one: it begins its line, or nothing follows the language."""
    return match["lead"] is not None or not match["rest"].strip()


def _block(text: str, opening: re.Match[str]) -> Block:
    start, fence = opening.end(), opening["fence"]
    closing = re.compile(
        rf"(?P<own>^[ \t]*{fence})|(?<![{CHARACTERS}\s]){fence}(?=[ \t]*(?:\n|\Z))", re.MULTILINE
    )
    for match in closing.finditer(text, start):
        if match["own"] is not None or not _in_quotes(text, match.start()):
            body = text[start : match.start()]
            return _found(opening, body, match.end(), closed=True)
    return _found(opening, text[start:], len(text), closed=False)


def _found(opening: re.Match[str], body: str, end: int, *, closed: bool) -> Block:
    start = opening.start("fence")
    return Block(_program(opening, body), _language(opening), start, end, closed)


def _in_quotes(text: str, place: int) -> bool:
    """Return whether a quotation mark is open on the line before this place: then the fence is part of a string."""
    line = text[text.rfind("\n", 0, place) + 1 : place].replace('\\"', "").replace("\\'", "")
    return line.count('"') % 2 == 1 or line.count("'") % 2 == 1


def _program(opening: re.Match[str], body: str) -> str:
    rest = opening["rest"].strip()
    first = "" if not rest or _ATTRIBUTES.fullmatch(rest) else rest + "\n"
    width = len(opening["lead"] or "")
    lines = [line[min(width, len(line) - len(line.lstrip(" \t"))) :] for line in body.split("\n")]
    return first + program_of("\n".join(lines))
