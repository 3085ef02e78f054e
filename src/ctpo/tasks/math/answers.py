"""Where in a text its final answer stands."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_BOXED = re.compile(r"\\f?boxed\s*\{")
_MARKED = re.compile(r"####[ \t]*(\S[^\n]*)")
_SAID = re.compile(
    r"\b(?:final )?answer\**\s*(?:is\s*:?|[:=])[\s*]*(\S[^\n]*?)(?=\.?\**(?:\s*$|\n)|\.\s)", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_LONGEST = 2_000  # characters; an answer longer than this is none


def final_answer(text: str) -> str | None:
    """Return the last boxed answer; failing that what follows the last `####`, or the last "answer is".

    None where the text holds none of these: a bare number somewhere is not taken for an answer.
    """
    found = _last_boxed(text)
    if found is None:
        said = _MARKED.findall(text) or _SAID.findall(text)
        found = said[-1].rstrip(". \t*") if said else None
    if found is None or not found.strip() or len(found) > _LONGEST:
        return None
    return found.strip()


def reference_answer(text: str) -> str:
    """Return the answer in a dataset's answer column: a boxed or `####` part if it has one, else all of it."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    marked = _MARKED.findall(text)
    return (marked[-1] if marked else text).strip()


def canonical(answer: str) -> str:
    """Return the answer without what does not change its value: white space, `$`, thousands commas, `\\left`, …

    Equal strings mean equal answers; different strings may still be equal (1/2 and 0.5).
    """
    text = re.sub(r"\\(?:left|right|displaystyle|!|,|;|:)|\$|\s+|\*\*", "", answer)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".")
    number = as_number(text)
    if number is None:
        return text
    return str(int(number)) if number == number.to_integral_value() else str(number.normalize())


def as_number(answer: str) -> Decimal | None:
    """Return the value of a plain decimal number, thousands commas allowed, or None."""
    text = answer.strip().strip("$").strip()
    if len(text) > 100 or not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def _last_boxed(text: str) -> str | None:
    for opening in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for i in range(opening.end(), min(len(text), opening.end() + _LONGEST)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[opening.end() : i]
    return None
