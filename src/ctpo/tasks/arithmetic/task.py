"""Chains of additions and subtractions, e.g. `3+67+77-29+5-41=`."""

from __future__ import annotations

import random
import re

from ctpo.tasks.splits import digest, held_out
from ctpo.tasks.task import Problem, Task, validate_request
from ctpo.tasks.tool import PythonTool

OPERANDS = 6
LARGEST = 99

TOOL = PythonTool(
    max_calls=8,  # five are needed; the rest lets a confused model fail by itself
    max_result_chars=8,
    error_mark="?",
    result_charset="0123456789-?",
)

_ANSWER = re.compile(r"=(-?[0-9]+)\Z")


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Draw distinct chains of six operands between 1 and 99.

    Args:
        split: "train" or "test"; a hash of the prompt decides which, so the two never overlap.
        count: how many; a smaller count gives the beginning of the same list.
        seed: seed of the draw.

    Returns:
        The problems, prompts ending in `=`, answers as plain decimal integers.

    Raises:
        ValueError: for an unknown split or a negative count.
    """
    validate_request(split, count)
    draw = random.Random(f"arithmetic/{split}/{seed}")
    chosen: dict[str, Problem] = {}
    while len(chosen) < count:
        prompt, answer = _chain(draw)
        if held_out(prompt) == (split == "test"):
            chosen[prompt] = Problem(
                prompt=prompt, answer=str(answer), id=f"arithmetic-{digest(prompt)[:16]}"
            )
    return list(chosen.values())


def terms(prompt: str) -> list[tuple[str, int]]:
    """Split a prompt into signed operands: `3+67-29=` gives [("+", 3), ("+", 67), ("-", 29)]."""
    return [(sign or "+", int(digits)) for sign, digits in re.findall(r"([+-]?)([0-9]+)", prompt)]


def check(completion: str, answer: str) -> bool:
    """Return True where the completion ends with `=` and the answer, written as a plain decimal integer."""
    return extract(completion) == answer


def extract(completion: str) -> str | None:
    """Return the plain decimal integer after a final `=`, or None."""
    found = _ANSWER.search(completion.rstrip())
    return found.group(1) if found else None


def _chain(draw: random.Random) -> tuple[str, int]:
    total = draw.randint(1, LARGEST)
    text = str(total)
    for _ in range(OPERANDS - 1):
        sign, operand = draw.choice("+-"), draw.randint(1, LARGEST)
        total += operand if sign == "+" else -operand
        text += f"{sign}{operand}"
    return f"{text}=", total


ARITHMETIC = Task(name="arithmetic", problems=problems, check=check, tool=TOOL, extract=extract)
