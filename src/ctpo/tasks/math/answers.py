"""Extracting the final answer from a text."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_BOXED = re.compile(r"\\f?boxed\s*\{")
_MARKED = re.compile(r"####[ \t]*(\S[^\n]*)")
_ANSWER_IS = re.compile(
    r"\b(?:final )?answer\**\s*(?:is\s*:?|[:=])[\s*]*(\S[^\n]*?)(?=\.?\**(?:\s*$|\n)|\.\s)", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
_LONGEST = 2_000  # characters; a longer text is not an answer


def final_answer(text: str) -> str | None:
    """The last boxed answer. Without one: the text after the last `####`, or else after the last "answer is".

    It is None if the text contains none of these. A bare number somewhere is not an answer.
    """
    answer = _last_boxed(text)
    if answer is None:
        marked = _MARKED.findall(text) or _ANSWER_IS.findall(text)
        answer = marked[-1].rstrip(". \t*") if marked else None
    if answer is None or not answer.strip() or len(answer) > _LONGEST:
        return None
    return answer.strip()


def reference_answer(text: str) -> str:
    """The answer in the text of a dataset's answer column: its boxed or `####` part if there is one, or all of it."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    marked = _MARKED.findall(text)
    return (marked[-1] if marked else text).strip()


def canonical(answer: str) -> str:
    """The answer without what does not change its value: white space, `$`, thousands commas, `\\left`, …

    Equal results mean equal answers. Different results may still be equal answers, such as 1/2 and 0.5.
    """
    text = re.sub(r"\\(?:left|right|displaystyle|!|,|;|:)|\$|\s+|\*\*", "", answer)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".")
    number = as_number(text)
    if number is None:
        return text
    return str(int(number)) if number == number.to_integral_value() else str(number.normalize())


def as_number(answer: str) -> Decimal | None:
    """The value of a plain decimal number, which may have thousands commas; None for anything else."""
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
