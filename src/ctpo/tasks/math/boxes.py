"""The boxes (`\\boxed{…}`) of a text."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 2_000
"""How many characters an answer may have. A longer text is not an answer."""

_TOKEN = re.compile(
    r"\\(?:f?boxed|fbox)(?![A-Za-z])[ \t\n]{0,8}(?:(?P<brace>\{)|(?P<bare>[^\s${}\\]{1,100}))?|\\.|[{}]",
    re.DOTALL,
)
_BLANK_LINE = re.compile(r"\n[ \t\r]{0,50}\n")


@dataclass
class Box:
    """A box. `content` is None if the box is unfinished: it is never closed, too long, or goes over a blank line."""

    start: int
    end: int
    content: str | None


def boxes(text: str) -> list[Box]:
    """The boxes in order, without those inside of a finished box. The time is linear in the length of the text."""
    opened: list[tuple[Box, int] | None] = []
    every: list[Box] = []
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word == "{":
            opened.append(None)
        elif word == "}":
            closed = opened.pop() if opened else None
            if closed is not None:
                box, begins = closed
                if token.start() - begins <= LONGEST:
                    content = text[begins : token.start()]
                    if not _BLANK_LINE.search(content):
                        box.content, box.end = content, token.end()
        elif token["brace"]:
            box = Box(token.start(), token.end(), None)
            every.append(box)
            opened.append((box, token.end()))
        elif word.startswith(("\\boxed", "\\fboxed", "\\fbox")):
            bare = token["bare"]
            every.append(Box(token.start(), token.end(), bare.rstrip(".,;:!?") if bare else None))
    outermost: list[Box] = []
    for box in every:
        inside = outermost and outermost[-1].content is not None and box.start < outermost[-1].end
        if not inside:
            outermost.append(box)
    return outermost
