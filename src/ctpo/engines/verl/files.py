"""The files that a run gives to verl: the problems, and where our agent loop is. Nothing here imports verl or Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ctpo.engines.verl.place import Orders
from ctpo.engines.verl.translation import AGENT
from ctpo.runs.atomic import write_text
from ctpo.tasks import Problem

_LOOP: Final = "ctpo.engines.verl.agent.TaskAgentLoop"
PROBLEM: Final = "problem"
"""The entry of `extra_info` from which our agent loop takes the problem."""
HELDOUT: Final = "heldout"
"""The entry of `extra_info` that says that a problem is a held-out one."""
TRANSCRIPT: Final = "transcript"
"""The entry of a held-out response's figures that holds the whole of it."""


def rows(problems: Sequence[Problem], task: str, *, heldout: bool = False) -> list[dict[str, Any]]:
    """The problems with the columns that verl's dataset reads."""
    return [
        {
            "data_source": task,
            "prompt": [{"role": "user", "content": problem.prompt}]
            if isinstance(problem.prompt, str)
            else [dict(message) for message in problem.prompt],
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {
                "index": place,
                HELDOUT: heldout,
                PROBLEM: json.dumps(
                    {"prompt": problem.prompt, "answer": problem.answer, "id": problem.id}, default=list
                ),
            },
            "agent_name": AGENT,
        }
        for place, problem in enumerate(problems)
    ]


def write_problems(path: Path, problems: Sequence[Problem], task: str, *, heldout: bool = False) -> None:
    """Write problems as a parquet file."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(problems, task, heldout=heldout)), path)


def write_agent(path: Path, orders: Orders) -> None:
    """Write the file that tells verl where our agent loop is."""
    import yaml

    write_text(path, yaml.safe_dump([{"name": AGENT, "_target_": _LOOP, "orders": orders.as_json()}]))
