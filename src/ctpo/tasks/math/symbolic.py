"""Comparing answers with computer algebra. It can take long and much memory, so it runs in a process of its own."""

from __future__ import annotations

from typing import Literal

_LIMIT_S = 3


def compare(reference: str, given: str) -> Literal["right", "wrong", "unparsable"]:
    """The verdict on the given answer.

    Raises:
        Exception: of any kind, on odd text; the caller takes it for "unparsable".
    """
    from math_verify import parse, verify

    expected, answer = (parse(f"\\boxed{{{text}}}", parsing_timeout=_LIMIT_S) for text in (reference, given))
    if not expected or not answer:
        return "unparsable"
    return "right" if verify(expected, answer, timeout_seconds=_LIMIT_S) else "wrong"
