"""Sums of three two-digit numbers, for a chat model that may compute them with Python.

A model of 135 million parameters can learn the task on a CPU. Without the tool it is too hard for such a model.
"""

from __future__ import annotations

import random
import re

from ctpo.tasks.splits import draw_problems
from ctpo.tasks.task import Problem, Task
from ctpo.tasks.tool import PythonTool

OPERANDS = 3
SMALLEST, LARGEST = 10, 99

TOOL = PythonTool(  # output comes back inside the turn, because a turn of its own would double a response's tokens
    open="```python",
    close="\n```",
    result_open="\n",
    result_close="\n",
    error_mark="error",
    max_calls=2,
    max_result_chars=16,
)
SYSTEM = "Use Python."
EXAMPLES = (
    *TOOL.example("48+17-25", "print(48+17-25)", "40"),
    *TOOL.example("31-64+90", "print(31-64+90)", "57"),
)
_SHOWN = frozenset(message["content"] for message in EXAMPLES)

_ANSWER = re.compile(r"answer is (-?[0-9]+)(?![0-9]|[.,][0-9])")


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Distinct chains of three numbers between 10 and 99, with their sums as plain decimal integers.

    The worked examples never appear. A hash of the prompt decides its split, so the splits never overlap.

    Raises:
        ValueError: if the split is unknown or the count is negative.
    """
    return draw_problems("chain-sums", split, count, seed, _chain, excluded=_SHOWN)


def check(completion: str, answer: str) -> bool:
    """Whether the completion's last `answer is …` names the answer."""
    return extract(completion) == answer


def extract(completion: str) -> str | None:
    """The integer after the last `answer is`, or None."""
    answers = _ANSWER.findall(completion)
    return answers[-1] if answers else None


def _chain(draw: random.Random) -> tuple[str, int]:
    """A prompt and its answer."""
    total = draw.randint(SMALLEST, LARGEST)
    text = str(total)
    for _ in range(OPERANDS - 1):
        sign, operand = draw.choice("+-"), draw.randint(SMALLEST, LARGEST)
        total += operand if sign == "+" else -operand
        text += f"{sign}{operand}"
    return text, total


CHAIN_SUMS = Task(
    name="chain-sums",
    problems=problems,
    check=check,
    tool=TOOL,
    system=SYSTEM,
    examples=EXAMPLES,
    extract=extract,
)
"""The task that `recipes/smollm2-tool` trains on."""
