"""Comparing answers exactly, in this process and in little time."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Literal

_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?", re.ASCII)


def compare(reference: str, given: str) -> Literal["right", "wrong"] | None:
    """The verdict on the given answer, or None if `symbolic.compare` has to decide."""
    if canonical(reference) == canonical(given):
        return "right"
    number, expected = as_number(given), as_number(reference)
    if number is not None and expected is not None:
        return "right" if number == expected else "wrong"
    return None


def canonical(answer: str) -> str:
    """A key of the answer. Equal keys mean equal answers; different keys may belong to equal answers, too."""
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
