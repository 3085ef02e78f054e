"""Problems as verl reads them (parquet), and the judge as verl calls it.

    python -m ctpo.adapters.verl_data FOLDER

writes FOLDER/deepscaler.parquet (training) and FOLDER/competitions.parquet (AIME 2025 and 2026, BRUMO 2025,
HMMT 2025). The hub is needed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ctpo.tasks import get_task
from ctpo.tasks.math import MathCheck

COMPETITIONS: Final = ("aime25", "aime26", "brumo25", "hmmt25")
SYSTEM: Final = (
    "Solve the problem step by step. You can run Python programs with the tool; print what you need. "
    "Put the final answer in \\boxed{}."
)
"""verl's tool agent lists the tool in the model's own chat template, so this does not describe it."""
_EVERY: Final = 10**9

_CHECK = MathCheck()


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any
) -> dict[str, float]:
    """verl's custom reward: 1 for a right final answer, 0 otherwise."""
    right = float(_CHECK(solution_str, ground_truth))
    return {"score": right, "acc": right}


def rows(tasks: Iterable[str], split: str, *, limit: int = _EVERY) -> list[dict[str, Any]]:
    """The problems of these tasks, one row each, with the columns verl's dataset reads."""
    found = []
    for name in tasks:
        for problem in get_task(name).problems(split, limit, 0):
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": problem.prompt}]
            found.append(
                {
                    "data_source": name,
                    "prompt": messages,
                    "reward_model": {"style": "rule", "ground_truth": problem.answer},
                    "extra_info": {"id": problem.id, "split": split},
                    "agent_name": "tool_agent",
                }
            )
    return found


def write(
    folder: Path, train: Iterable[str] = ("deepscaler",), test: Iterable[str] = COMPETITIONS
) -> list[Path]:
    """Write both files; returns their paths."""
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
