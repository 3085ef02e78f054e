"""Train and test splits that cannot overlap: a problem's own prompt decides which split it belongs to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from ctpo.tasks.task import Problem, validate_request

HELD_OUT_SHARE = 1 / 8


def digest(prompt: str) -> str:
    """A hexadecimal fingerprint of a prompt, the same on every machine (unlike `hash`)."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def held_out(prompt: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether a prompt belongs to the test split.

    This depends on the prompt alone. So no seed, count or version of a generator can put one prompt into both splits.
    """
    return int(digest(prompt)[:8], 16) < share * 2**32


def draw_problems(
    name: str,
    split: str,
    count: int,
    seed: int,
    draw_one: Callable[[random.Random], tuple[str, int]],
    excluded: frozenset[str] = frozenset(),
) -> list[Problem]:
    """Distinct problems of one split. A smaller count gives the beginning of the same list.

    Args:
        name: of the task; problem ids begin with it.
        split: "train" or "test".
        count: how many problems.
        seed: of the random draw.
        draw_one: makes one prompt and its answer from random numbers.
        excluded: prompts that never appear.

    Raises:
        ValueError: if the split is unknown or the count is negative.
    """
    validate_request(split, count)
    draw = random.Random(f"{name}/{split}/{seed}")
    chosen: dict[str, Problem] = {}
    while len(chosen) < count:
        prompt, answer = draw_one(draw)
        if held_out(prompt) == (split == "test") and prompt not in excluded:
            chosen[prompt] = Problem(prompt=prompt, answer=str(answer), id=f"{name}-{digest(prompt)[:16]}")
    return list(chosen.values())
