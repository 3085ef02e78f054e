"""The tasks that ship with the package, by name."""

from __future__ import annotations

from ctpo.tasks.arithmetic.task import ARITHMETIC
from ctpo.tasks.task import Task

_TASKS = {task.name: task for task in (ARITHMETIC,)}


def task_names() -> tuple[str, ...]:
    """Return the names that `get_task` knows."""
    return tuple(_TASKS)


def get_task(name: str) -> Task:
    """Return the shipped task of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in _TASKS:
        raise ValueError(f"task {name!r} is unknown; use one of {', '.join(_TASKS)}")
    return _TASKS[name]
