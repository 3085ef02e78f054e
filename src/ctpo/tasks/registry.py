"""Tasks by their names.

    arithmetic, gsm8k, aime25, …      a shipped task
    gsm8k@PATH                        the same with a local file or directory in place of the hub
    PATH.jsonl, .json, .csv, .parquet a mathematics task from a file (.gz too)
    hub:OWNER/NAME                    a mathematics task from any hub dataset
    reasoning_gym:NAME                a generator of reasoning-gym
    worksheet?problems=K              K chains of sums in one conversation
    FILE.py, FILE.py:NAME             a `Task` that a user's Python file defines (FILE.py@PATH: see gsm8k@PATH)

Options follow a question mark and are joined by `&`: `prompt=COLUMN`, `answer=COLUMN`, `id=COLUMN`, `config=NAME`,
`split=NAME` (the hub split used as test split), and for chat tasks `tool=none|auto|fenced|native`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ctpo.errors import UserError
from ctpo.tasks.arithmetic.task import ARITHMETIC
from ctpo.tasks.arithmetic.worksheet import worksheet_task
from ctpo.tasks.chain_sums import CHAIN_SUMS
from ctpo.tasks.columns import Columns
from ctpo.tasks.generated import generated_task
from ctpo.tasks.math import reference_answer
from ctpo.tasks.mathematics import MATHEMATICS, math_task
from ctpo.tasks.own import is_own_task, own_task
from ctpo.tasks.rows import SUFFIXES
from ctpo.tasks.sources import DatasetSource, HubDataset
from ctpo.tasks.task import Task
from ctpo.tasks.tool import Style
from ctpo.tasks.tool_files import tools_at

_TASKS = {task.name: task for task in (ARITHMETIC, worksheet_task(), CHAIN_SUMS, *MATHEMATICS)}
_COLUMN_OPTIONS = ("prompt", "answer", "id")
_HUB_OPTIONS = ("config", "split")
_TOOLS: dict[str, Style | None] = {"none": None, "auto": "auto", "fenced": "fenced", "native": "native"}


def task_names() -> tuple[str, ...]:
    """The names of the shipped tasks.

    Example:
        "gsm8k" in task_names()  # True
    """
    return tuple(_TASKS)


def runs_code(name: str) -> bool:
    """Whether `get_task` would run a Python file for this name, as `FILE.py` or `FILE.py@PATH`."""
    base = name.partition("?")[0]
    return is_own_task(base) or is_own_task(base.partition("@")[0])


def get_task(name: str, tools: Sequence[str] = ()) -> Task:
    """The task of that name, in one of the forms above. Its data is loaded only when problems are requested.

    Args:
        tools: further functions that the model may call: `FILE.py:NAME` or `package.module:NAME`.

    Raises:
        UserError: if there is no such task or function, or if an option does not fit it.

    Example:
        task = get_task("gsm8k?tool=none")
    """
    base, _, query = name.partition("?")
    options = _options(name, query)
    task = _base_task(base, options)
    task = _with_tool(task, options.get("tool"))
    return dataclasses.replace(task, tools=(*task.tools, *tools_at(tools))) if tools else task


def _base_task(base: str, options: dict[str, str]) -> Task:
    shipped, at, path = base.partition("@")
    if base.startswith("reasoning_gym:"):
        _refuse(options, (*_COLUMN_OPTIONS, *_HUB_OPTIONS, "problems"), base)
        return generated_task(base.removeprefix("reasoning_gym:"))
    if base.startswith("hub:"):
        _refuse(options, ("problems",), base)
        return _hub_task(base.removeprefix("hub:"), options)
    _refuse(options, _HUB_OPTIONS, base)
    if base == "worksheet" and "problems" in options:
        return _worksheet(options)
    _refuse(options, ("problems",), base)
    if is_own_task(base):
        return _from_files(own_task(base), None, options)
    if is_own_task(shipped):
        return _from_files(own_task(shipped), Path(path), options)
    if shipped in _TASKS:
        return _from_files(_TASKS[shipped], Path(path) if at else None, options)
    if base.endswith(SUFFIXES) or os.path.exists(base):
        return _file_task(Path(base), options)
    near = difflib.get_close_matches(shipped, _TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"task {base!r} is unknown; {hint}use one of {', '.join(_TASKS)}, a JSONL or parquet file, hub:OWNER/NAME, "
        "reasoning_gym:NAME, or FILE.py with a task of your own"
    )


def _worksheet(options: dict[str, str]) -> Task:
    _refuse(options, (*_COLUMN_OPTIONS, "tool"), "worksheet")
    count = options["problems"]
    if not re.fullmatch(r"[0-9]{1,4}", count):
        raise UserError(f"task worksheet?problems={count}: {count} is no number of problems, such as 7")
    return worksheet_task(int(count))


def _from_files(task: Task, path: Path | None, options: dict[str, str]) -> Task:
    """The task, with problems from a file or a folder in place of the hub's if a path is given."""
    name = task.name
    if not isinstance(task.problems, DatasetSource):
        if path is not None:
            raise UserError(f"task {name!r} makes its problems itself; drop @{path}")
        _refuse(options, (*_COLUMN_OPTIONS, *(("tool",) if name in _TASKS else ())), name)
        return task
    if path is None and not options:
        return task
    if path is not None and not os.path.exists(path):
        raise UserError(
            f"task {name}@{path}: {path} does not exist; give a JSONL or parquet file, or a directory"
        )
    # A file in place of the hub's dataset may have other column names.
    columns = _columns(options, task.problems.columns if path is None else Columns())
    return dataclasses.replace(task, problems=dataclasses.replace(task.problems, path=path, columns=columns))


def _file_task(path: Path, options: dict[str, str]) -> Task:
    if not os.path.exists(path):
        raise UserError(f"task {path} does not exist; give the path of a JSONL or parquet file")
    name = _plain(path.stem)
    columns = _columns(options, Columns())
    return math_task(name, DatasetSource(name=name, path=path, columns=columns, answer=reference_answer))


def _hub_task(dataset: str, options: dict[str, str]) -> Task:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
        raise UserError(f"task hub:{dataset} is not a hub dataset; write hub:OWNER/NAME")
    splits = {"train": "train", "test": options.get("split", "test")}
    if splits["test"] == "train":
        del splits["train"]  # held-out problems must not be trained on
    hub = HubDataset(id=dataset, config=options.get("config"), splits=splits)
    name = _plain(dataset.partition("/")[2])
    columns = _columns(options, Columns())
    return math_task(name, DatasetSource(name=name, hub=(hub,), columns=columns, answer=reference_answer))


def _with_tool(task: Task, tool: str | None) -> Task:
    if tool is None or task.tool is None:
        return task
    style = _TOOLS[tool]
    if style is None:
        return dataclasses.replace(task, tool=None)
    return dataclasses.replace(task, tool=dataclasses.replace(task.tool, style=style))


def _options(name: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    known = (*_COLUMN_OPTIONS, *_HUB_OPTIONS, "tool", "problems")
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key not in known or not equals or not value:
            raise UserError(
                f"task {name!r}: option {part!r} is not KEY=VALUE with a key of {', '.join(known)}"
            )
        options[key] = value
    if options.get("tool", "auto") not in _TOOLS:
        raise UserError(f"task {name!r}: tool={options['tool']!r} is unknown; use one of {', '.join(_TOOLS)}")
    return options


def _columns(options: dict[str, str], default: Columns) -> Columns:
    given = {key: options[key] for key in _COLUMN_OPTIONS if key in options}
    return dataclasses.replace(default, **given)


def _refuse(options: dict[str, str], keys: tuple[str, ...], base: str) -> None:
    for key in keys:
        if key in options:
            raise UserError(f"task {base!r} has no option {key!r}; drop {key}={options[key]}")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "task"
