"""Chains of additions and subtractions, for example `3+67+77-29+5-41=`."""

from __future__ import annotations

import random
import re
from functools import partial

from ctpo.tasks.splits import draw_problems
from ctpo.tasks.task import Problem, Task
from ctpo.tasks.tool import PythonTool

OPERANDS = 6
LARGEST = 99

TOOL = PythonTool(
    max_calls=8,  # five are needed; with more, a confused model makes its own mistakes
    max_result_chars=8,
    error_mark="?",
    result_charset="0123456789-?",
)

_ANSWER = re.compile(r"=(-?[0-9]+)\Z")


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Distinct chains of six operands between 1 and 99. Prompts end with `=`; answers are plain decimal integers.

    A hash of the prompt decides its split, so the splits never overlap.

    Raises:
        ValueError: if the split is unknown or the count is negative.
    """
    return draw_problems("arithmetic", split, count, seed, partial(chain, OPERANDS))


def terms(prompt: str) -> list[tuple[str, int]]:
    """The signed operands of a prompt: `3+67-29=` gives [("+", 3), ("+", 67), ("-", 29)]."""
    return [(sign or "+", int(digits)) for sign, digits in re.findall(r"([+-]?)([0-9]+)", prompt)]


def check(completion: str, answer: str) -> bool:
    """Whether the completion ends with `=` and the answer as a plain decimal integer."""
    return extract(completion) == answer


def extract(completion: str) -> str | None:
    """The plain decimal integer after a final `=`, or None."""
    match = _ANSWER.search(completion.rstrip())
    return match.group(1) if match else None


def chain(operands: int, draw: random.Random) -> tuple[str, int]:
    """A chain of this many operands, and its sum."""
    total = draw.randint(1, LARGEST)
    text = str(total)
    for _ in range(operands - 1):
        sign, operand = draw.choice("+-"), draw.randint(1, LARGEST)
        total += operand if sign == "+" else -operand
        text += f"{sign}{operand}"
    return f"{text}=", total


ARITHMETIC = Task(name="arithmetic", problems=problems, check=check, tool=TOOL, extract=extract)
