"""Comparing answers with computer algebra. It can take long and much memory, so it runs in a process of its own."""

from __future__ import annotations

from typing import Literal


def compare(reference: str, given: str) -> Literal["right", "wrong", "unparsable"]:
    """The verdict on the given answer. It sets no time limit: the process that calls it is ended after one.

    Raises:
        Exception: of any kind, on odd text; the caller takes it for "unparsable".
    """
    from math_verify import parse, verify

    expected, answer = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (reference, given))
    if not expected or not answer:
        return "unparsable"
    return "right" if verify(expected, answer, timeout_seconds=None) else "wrong"
