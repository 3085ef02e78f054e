"""Any generator of the package `reasoning-gym` as a task."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any

from ctpo.errors import UserError
from ctpo.tasks.extras import require
from ctpo.tasks.math.answers import final_answer
from ctpo.tasks.splits import digest, held_out
from ctpo.tasks.task import Problem, Task, validate_request
from ctpo.tasks.tool import CHAT_TOOL

SYSTEM = (
    "Solve the problem step by step. You can run Python: write a block that starts with ```python and ends with "
    "```, print what you need, and its output is shown to you. Give the final answer between <answer> and </answer>."
)
RIGHT = 1.0
"""Score of reasoning-gym's own judge from which an answer counts as right: it also has marks for half-right."""
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TRIES = 20  # draws a problem: half of them or more fall into the other split, or were drawn before


class Generator:
    """Problems and judge of one reasoning-gym generator.

    Its judges look at the whole entry, not at an answer alone, so a problem's `answer` is the entry as JSON.
    """

    def __init__(self, name: str) -> None:
        require("reasoning_gym", "reasoning-gym", f"task reasoning_gym:{name}")
        from reasoning_gym.factory import DATASETS

        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)[:5]
            raise UserError(f"reasoning_gym has no generator {name!r}; use for example {', '.join(near)}")
        self.name = name

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        """Draw distinct questions; a hash of the question decides the split. Fewer where the generator has no more."""
        validate_request(split, count)
        import reasoning_gym

        draws = reasoning_gym.create_dataset(self.name, size=_TRIES * (count + 10), seed=seed)
        chosen: dict[str, Problem] = {}
        for entry in draws:
            if len(chosen) == count:
                break
            question = entry["question"]
            if held_out(question) == (split == "test"):
                name = f"{self.name}-{digest(question)[:16]}"
                chosen.setdefault(question, Problem(prompt=question, answer=_dumped(entry), id=name))
        return list(chosen.values())

    def check(self, completion: str, answer: str) -> bool:
        """Ask the generator's own judge about the final answer."""
        found = extract(completion)
        if found is None:
            return False
        import reasoning_gym

        entry = json.loads(answer)
        try:
            score = reasoning_gym.get_score_answer_fn(self.name)(answer=found, entry=entry)
        except Exception:  # judges parse what the model wrote, and not all of them expect odd text
            return bool(found == entry["answer"])
        return float(score) >= RIGHT


def extract(completion: str) -> str | None:
    """Return what stands in the last answer tags, else the final answer as in mathematics, else None."""
    tagged = _TAGGED.findall(completion)
    return tagged[-1].strip() if tagged else final_answer(completion)


def generated_task(name: str) -> Task:
    """The task of a reasoning-gym generator.

    Raises:
        UserError: if the package or the generator is missing.
    """
    generator = Generator(name)
    return Task(
        name=f"reasoning_gym-{name}",
        problems=generator.problems,
        check=generator.check,
        tool=CHAT_TOOL,
        system=SYSTEM,
        extract=extract,
    )


def _dumped(entry: dict[str, Any]) -> str:
    return json.dumps(entry, default=str, ensure_ascii=False)
