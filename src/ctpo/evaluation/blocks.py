"""How many held-out problems an evaluation needs: as many as its standard error asks for.

An evaluation in the middle of training shows where the model stands, and a few hundred problems often do. Problems
are drawn in a fixed order, block by block, until the standard error is small enough or no problem is left. So of two
evaluations the one with fewer problems has a part of the other's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Final

from ctpo.evaluation.metrics import mean_and_error

FIRST: Final = 256
"""Problems of the first block: enough where one answer in twenty is wrong, or right, and `stderr` is 0.015."""
LEAST: Final = 64
"""The fewest problems of any other block. A smaller one would take as many steps of the model as a large one."""


def drawing_order(problems: int, seed: int) -> list[int]:
    """The positions of so many problems in the order in which evaluations draw them.

    They are shuffled, because a file may be sorted by difficulty. The order depends on the two numbers alone: Python
    promises that `random()` never changes.
    """
    noise = random.Random(seed)
    keys = [noise.random() for _ in range(problems)]
    return sorted(range(problems), key=keys.__getitem__)


def cautious_error(values: Sequence[float]) -> float:
    """The standard error of the mean as if one problem more had scored 0 and another one 1.

    The plain standard error of a few answers that are all right, or all wrong, is 0. This one is not.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference", adds such
    observations for the same reason.
    """
    return mean_and_error([*values, 0.0, 1.0])[1]


def next_block(figures: Sequence[Sequence[float]], problems: int, stderr: float) -> int:
    """The number of problems to evaluate next; 0 if there are enough, or none are left.

    A block is as large as the problems so far let expect: an error e of n problems falls to `stderr` with
    (n + 2) (e / stderr)² − 2 of them. What would be left as a block of fewer than `LEAST` problems is taken at once.

    Args:
        figures: what should be known, for example right (1) or wrong (0), with one value per evaluated problem.
        problems: how many there are in all.
        stderr: the largest standard error that each figure may have; 0 asks for all problems.
    """
    done = len(figures[0])
    if not stderr:
        wanted = problems
    elif not done:
        wanted = FIRST
    else:
        error = max(map(cautious_error, figures))
        wanted = (
            done if error <= stderr else max(math.ceil((done + 2) * (error / stderr) ** 2) - 2, done + LEAST)
        )
    if wanted > done and problems - wanted < LEAST:
        wanted = problems
    return wanted - done
