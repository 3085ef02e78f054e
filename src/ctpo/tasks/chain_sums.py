"""Sums of three two-digit numbers for a chat model that may hand them to Python.

Small enough for a 135-million-parameter model to learn on a CPU, and too hard for it without the tool.
"""

from __future__ import annotations

import random
import re

from ctpo.tasks.splits import digest, held_out
from ctpo.tasks.task import Problem, Task, validate_request
from ctpo.tasks.tool import PythonTool

OPERANDS = 3
SMALLEST, LARGEST = 10, 99

TOOL = PythonTool(  # output comes back inside the turn: a turn of its own would double a response's tokens
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

_ANSWER = re.compile(r"answer is (-?[0-9]+)(?![0-9]|[.,][0-9])")


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Draw distinct chains of three numbers between 10 and 99.

    Args:
        split: "train" or "test"; a hash of the prompt decides which, so the two never overlap.
        count: how many; a smaller count gives the beginning of the same list.
        seed: seed of the draw.

    Returns:
        The problems, answers as plain decimal integers.

    Raises:
        ValueError: for an unknown split or a negative count.
    """
    validate_request(split, count)
    draw = random.Random(f"chain-sums/{split}/{seed}")
    chosen: dict[str, Problem] = {}
    while len(chosen) < count:
        prompt, answer = _chain(draw)
        if held_out(prompt) == (split == "test") and not _shown(prompt):
            chosen[prompt] = Problem(
                prompt=prompt, answer=str(answer), id=f"chain-sums-{digest(prompt)[:16]}"
            )
    return list(chosen.values())


def check(completion: str, answer: str) -> bool:
    """Return True where the completion's last `answer is …` names the answer."""
    return extract(completion) == answer


def extract(completion: str) -> str | None:
    """Return the integer after the last `answer is`, or None."""
    found = _ANSWER.findall(completion)
    return found[-1] if found else None


def _chain(draw: random.Random) -> tuple[str, int]:
    total = draw.randint(SMALLEST, LARGEST)
    text = str(total)
    for _ in range(OPERANDS - 1):
        sign, operand = draw.choice("+-"), draw.randint(SMALLEST, LARGEST)
        total += operand if sign == "+" else -operand
        text += f"{sign}{operand}"
    return text, total


def _shown(prompt: str) -> bool:
    return any(message["content"] == prompt for message in EXAMPLES)


CHAIN_SUMS = Task(
    name="chain-sums",
    problems=problems,
    check=check,
    tool=TOOL,
    system=SYSTEM,
    examples=EXAMPLES,
    extract=extract,
)
"""What `recipes/smollm2-tool` trains on."""
