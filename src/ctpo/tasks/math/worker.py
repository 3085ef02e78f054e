"""Runs as a program that reads one pair `[reference, given]` per line and writes one verdict per line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path

_MEMORY = 4 << 30  # bytes of address space


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # text that a library prints must not be taken for a verdict
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    logging.disable(logging.CRITICAL)
    sys.path[0] = str(Path(__file__).parents[3])  # the package's folder in place of this file's
    import math_verify  # noqa: F401

    from ctpo.tasks.math.symbolic import compare

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            verdict = compare(*json.loads(line))
        except (Exception, RecursionError, MemoryError):
            verdict = "unparsable"
        print(verdict, file=answers, flush=True)


if __name__ == "__main__":
    main()
