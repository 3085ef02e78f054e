"""Problems in the parquet files that verl reads, and the judge that verl calls.

    python -m ctpo.adapters.verl_data FOLDER

This writes FOLDER/deepscaler.parquet for training, and FOLDER/competitions.parquet with AIME 2025 and 2026, BRUMO 2025
and HMMT 2025. The problems come from the hub the first time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ctpo.tasks import Problem, get_task
from ctpo.tasks.math import MathCheck

COMPETITIONS: Final = ("aime25", "aime26", "brumo25", "hmmt25")
SYSTEM: Final = (
    "Solve the problem step by step. You can run Python programs with the tool; print what you need. "
    "Put the final answer in \\boxed{}."
)
"""The system message. It does not describe the tool, since verl lists it through the model's chat template."""
AGENT: Final = "ctpo"
"""The name under which a file for verl names our agent loop."""
PROBLEM: Final = "problem"
"""The entry of `extra_info` from which our agent loop takes the problem."""
HELDOUT: Final = "heldout"
"""The entry of `extra_info` that says that a problem is a held-out one."""
_EVERY: Final = 10**9

_CHECK = MathCheck()


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any
) -> dict[str, float]:
    """verl's custom reward: 1 for a right final answer, and 0 otherwise."""
    right = float(_CHECK(solution_str, ground_truth))
    return {"score": right, "acc": right}


def row(
    problem: Problem, task: str, place: int, messages: Sequence[Mapping[str, Any]], *, heldout: bool
) -> dict[str, Any]:
    """A problem with the columns that verl's dataset reads.

    Args:
        problem: of a task.
        task: its name.
        place: of the problem among those of its file.
        messages: the prompt. verl measures its length; our agent loop writes prompts itself.
        heldout: whether the problem is a held-out one.
    """
    whole = {"prompt": problem.prompt, "answer": problem.answer, "id": problem.id}
    return {
        "data_source": task,
        "prompt": [dict(message) for message in messages],
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {
            "index": place,
            "id": problem.id,
            HELDOUT: heldout,
            PROBLEM: json.dumps(whole, default=list),
        },
        "agent_name": AGENT,
    }


def rows(tasks: Iterable[str], split: str, *, limit: int = _EVERY) -> list[dict[str, Any]]:
    """The problems of some tasks, one row per problem."""
    written: list[dict[str, Any]] = []
    for name in tasks:
        task = replace(get_task(name), system=SYSTEM, examples=())
        for problem in task.problems(split, limit, 0):
            messages = task.messages(problem.prompt)
            written.append(row(problem, name, len(written), messages, heldout=split == "test"))
    return written


def write(
    folder: Path, train: Iterable[str] = ("deepscaler",), test: Iterable[str] = COMPETITIONS
) -> list[Path]:
    """Write both files and return their paths."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, tasks, split in (("deepscaler", train, "train"), ("competitions", test, "test")):
        path = folder / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(tasks, split)), path)
        written.append(path)
    return written


if __name__ == "__main__":
    for each in write(Path(sys.argv[1])):
        print(each)
