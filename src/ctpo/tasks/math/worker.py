"""Runs as a program that reads one pair `[reference, given]` per line and writes one verdict per line.

It imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys

_MEMORY = 4 << 30  # bytes of address space
_LIMIT_S = 3  # less than the parent's limit, which costs more because it restarts this process


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # text that a library prints must not be taken for a verdict
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            verdict = compare(*json.loads(line))
        except (Exception, RecursionError, MemoryError):
            verdict = "unparsable"
        print(verdict, file=answers, flush=True)


def compare(reference: str, given: str) -> str:
    from math_verify import parse, verify

    expected, answer = (parse(f"\\boxed{{{text}}}", parsing_timeout=_LIMIT_S) for text in (reference, given))
    if not expected or not answer:
        return "unparsable"
    return "right" if verify(expected, answer, timeout_seconds=_LIMIT_S) else "wrong"


if __name__ == "__main__":
    main()
