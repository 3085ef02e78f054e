"""Sums of three two-digit numbers, ten in one conversation, for the arms of the study on SmolLM2.

The first sum is the prompt. The model answers it, ends its turn, and is asked the next one. A right answer earns 1/10.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

from ctpo.tasks import Problem, get_task

SUM: Final = get_task("chain-sums")
SIZE: Final = 10


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Sheets of sums. The answer of one is the list of its questions and answers."""
    dealt = SUM.problems(split, count * SIZE, seed)
    sheets = [dealt[start : start + SIZE] for start in range(0, len(dealt) - SIZE + 1, SIZE)]
    return [
        replace(each[0], answer=json.dumps([[one.prompt, one.answer] for one in each])) for each in sheets
    ]


class Sheet:
    """The environment that asks a sheet's questions one after the other and marks the answers."""

    answers_at_once = True

    def reset(self, problem: Problem) -> None:
        """Begin with the prompt, which is the first question."""
        self.dealt, self.done = json.loads(problem.answer), 0

    def step(self, reply: str) -> tuple[str | None, float, bool]:
        """Mark an answer, and ask the next question."""
        right = SUM.check is not None and SUM.check(reply, self.dealt[self.done][1])
        self.done += 1
        over = self.done == len(self.dealt)
        return None if over else self.dealt[self.done][0], right / len(self.dealt), over


assert SUM.tool is not None
task = replace(
    SUM,
    name="sums-sheet",
    problems=problems,
    check=None,
    extract=None,
    environment=Sheet,
    max_turns=SIZE,
    passing_reward=None,
    tool=replace(SUM.tool, max_calls=2 * SIZE),
)
