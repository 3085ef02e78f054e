"""Worksheets: many chains of sums in one conversation, so that length grows while a single problem stays as hard.

The prompt is the first chain. The model computes it, ends its turn with the answer, and is dealt the next chain:

    3+67-29+5=<py>print(3+67)</py><out>70</out>70-29=41;41+5=46;=46<eos>;81-7+30+2=...

Every problem earns 1/k if it is right, where k is the number of problems. So the reward of a response is the share of
right answers, and each turn has a reward of its own.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Final

from ctpo.errors import UserError
from ctpo.tasks.arithmetic.task import TOOL, chain, extract, terms
from ctpo.tasks.arithmetic.tokenizer import STEP_END
from ctpo.tasks.splits import digest, draw_problems, held_out
from ctpo.tasks.task import Problem, Task

OPERANDS: Final = 4
"""Numbers in a chain. Fewer than in the embedded task, so that a problem has about 35 tokens of the model's own."""
DEFAULT_PROBLEMS: Final = 7
MOST_PROBLEMS: Final = 64
"""More would not fit into the 4,096 positions of the model."""
_CALLS: Final = 8
"""Programs per problem; three are needed."""


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Distinct first chains of worksheets, each with its own sum as answer; the others follow from the first.

    Raises:
        ValueError: if the split is unknown or the count is negative.
    """
    return draw_problems("worksheet", split, count, seed, partial(chain, OPERANDS))


class Worksheet:
    """The environment that deals out the chains of one worksheet and marks the answers.

    Args:
        count: k, the number of problems.
    """

    answers_at_once = True

    def __init__(self, count: int) -> None:
        self._count = count
        self._chains: list[tuple[str, int]] = []
        self._done = 0

    def reset(self, problem: Problem) -> None:
        """Begin the worksheet that this problem opens."""
        self._chains, self._done = chains(str(problem.prompt), self._count), 0

    def step(self, reply: str) -> tuple[str | None, float, bool]:
        """Mark an answer, and deal out the next chain."""
        right = extract(reply) == str(self._chains[self._done][1])
        self._done += 1
        over = self._done == self._count
        return None if over else f"{STEP_END}{self._chains[self._done][0]}", right / self._count, over


def chains(first: str, count: int) -> list[tuple[str, int]]:
    """The chains of the worksheet that begins with this one, and their sums.

    They belong to the split of the first. A longer worksheet begins with the chains of a shorter one.
    """
    draw, held = random.Random(f"worksheet/{digest(first)}"), held_out(first)
    dealt = [(first, sum(int(sign + str(number)) for sign, number in terms(first)))]
    while len(dealt) < count:
        prompt, total = chain(OPERANDS, draw)
        if held_out(prompt) == held:
            dealt.append((prompt, total))
    return dealt


def worksheet_task(count: int = DEFAULT_PROBLEMS) -> Task:
    """The task with this many problems in a worksheet.

    Raises:
        UserError: if the number is out of range.

    Example:
        task = worksheet_task(14)  # about 500 tokens of the model's own in a response
    """
    if not 1 <= count <= MOST_PROBLEMS:
        raise UserError(f"worksheet of {count} problems: use 1 to {MOST_PROBLEMS}")
    return Task(
        name="worksheet",
        problems=problems,
        tool=replace(TOOL, max_calls=_CALLS * count),
        environment=partial(Worksheet, count),
        max_turns=count,
        passing_reward=None,
    )
