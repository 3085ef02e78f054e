"""A user's own task, from a Python file: `FILE.py`, or `FILE.py:NAME` if the task is not called `task`."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from ctpo.errors import UserError
from ctpo.tasks.splits import digest
from ctpo.tasks.task import Task

_PLACE = re.compile(r"(.*\.py)(?::(\w+))?")
_USUAL_NAME = "task"


def is_own_task(place: str) -> bool:
    """Whether this names a Python file, and not a shipped task or a dataset."""
    return _PLACE.fullmatch(place) is not None


def own_task(place: str) -> Task:
    """The `Task` of that name in the file, which is run as `python FILE.py` would run it.

    Raises:
        UserError: if the file is missing or raises, or holds no such task.
    """
    match = _PLACE.fullmatch(place)
    assert match is not None
    path, name = Path(match[1]), match[2] or _USUAL_NAME
    if not path.is_file():
        raise UserError(
            f"task {place}: {path} does not exist; give a Python file that defines a ctpo.tasks.Task"
        )
    module = _module(path.resolve(), path.stat().st_mtime_ns)
    value = getattr(module, name, None)
    if not isinstance(value, Task):
        tasks = [each for each, other in vars(module).items() if isinstance(other, Task)]
        what = "holds no" if value is None else f"has {type(value).__name__}, not a Task, as"
        advice = f"write {path}:{tasks[0]}" if tasks else f"assign a ctpo.tasks.Task to {name}"
        raise UserError(f"task {place}: {path} {what} {name!r}; {advice}")
    return value


@cache
def _module(path: Path, changed_ns: int) -> ModuleType:
    """The file as a module. It is run once for each version of the file."""
    name = f"ctpo_own_task_{digest(str(path))[:12]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up a module by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"task {path} cannot be run ({type(error).__name__}: {reason}); correct the file"
        ) from None
    return module
