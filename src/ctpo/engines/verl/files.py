"""The files that a run gives to verl: the problems, and where our agent loop is. Nothing here imports verl or Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ctpo.adapters.verl_data import AGENT, row
from ctpo.engines.verl.place import Orders
from ctpo.runs.atomic import write_text
from ctpo.tasks import Problem

_LOOP: Final = "ctpo.engines.verl.agent.TaskAgentLoop"
TRANSCRIPT: Final = "transcript"
"""The entry of a held-out response's figures that holds the whole of it."""


def rows(problems: Sequence[Problem], task: str, *, heldout: bool = False) -> list[dict[str, Any]]:
    """The problems with the columns that verl's dataset reads."""
    return [
        row(problem, task, place, _messages(problem), heldout=heldout)
        for place, problem in enumerate(problems)
    ]


def _messages(problem: Problem) -> Sequence[Mapping[str, Any]]:
    prompt = problem.prompt
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


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
