"""GSM8K for a model of 135 million parameters, which is to compute in Python.

`task` has worked examples that show a model how. `bare` has none, for a model that was warmed up: its prompts are a
quarter as long. `rated` is the same with a difficulty for each problem, which a curriculum begins with. Its problems
come from the hub, or from the folder that the environment variable GSM8K names (train.jsonl and test.jsonl).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from ctpo.tasks import Problem, chain_sums, get_task
from ctpo.tasks.sources import DatasetSource

TOOL = replace(chain_sums.TOOL, max_result_chars=32)  # its form, whose output comes back inside the turn
EXAMPLES = (
    *TOOL.example(
        "Mia has 3 boxes with 12 pencils each. She gives 7 pencils away. How many does she have left?",
        "pencils = 3 * 12\nprint(pencils - 7)",
        "29",
    ),
    *TOOL.example(
        "A ticket costs $8, and children pay half of that. What do 2 adults and 5 children pay together?",
        "child = 8 // 2\nprint(2 * 8 + 5 * child)",
        "36",
    ),
    *TOOL.example(
        "Ben reads 15 pages a day. A book has 240 pages, and he has read 90. How many more days does he need?",
        "left = 240 - 90\nprint(left // 15)",
        "10",
    ),
)

task = replace(
    get_task("gsm8k"),
    system="Use Python.",
    examples=EXAMPLES,
    tool=TOOL,
)
bare = replace(task, examples=())

EASY_CALCULATIONS: Final = 2
"""A problem whose worked solution has no more calculations than that is a good one to begin with."""


def calculations(split: str) -> dict[str, int]:
    """How many calculations `<<...>>` the worked solution to each problem has, by the problem's text."""
    return {
        str(row.columns["question"]).strip(): str(row.columns["answer"]).count("<<")
        for row in _source().rows(split)
    }


def rated_problems(split: str, count: int, seed: int) -> list[Problem]:
    """GSM8K's problems, rated by the calculations in their worked solutions."""
    counts = calculations(split)
    return [
        replace(
            each, difficulty="normal" if counts[str(each.prompt).strip()] <= EASY_CALCULATIONS else "hard"
        )
        for each in _source()(split, count, seed)
    ]


def _source() -> DatasetSource:
    folder = os.environ.get("GSM8K")
    source = get_task(f"gsm8k@{folder}" if folder else "gsm8k").problems
    assert isinstance(source, DatasetSource)
    return source


rated = replace(bare, problems=rated_problems)
