"""A task of the user's own, from a Python file: `FILE.py`, or `FILE.py:NAME` where it is not called `task`."""

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
    """Whether this names a Python file rather than a shipped task or a dataset."""
    return _PLACE.fullmatch(place) is not None


def own_task(place: str) -> Task:
    """Run the file, as `python FILE.py` would, and return the `Task` of that name.

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
    found = getattr(module, name, None)
    if not isinstance(found, Task):
        tasks = [each for each, value in vars(module).items() if isinstance(value, Task)]
        what = "holds no" if found is None else f"has {type(found).__name__}, not a Task, as"
        mend = f"write {path}:{tasks[0]}" if tasks else f"assign a ctpo.tasks.Task to {name}"
        raise UserError(f"task {place}: {path} {what} {name!r}; {mend}")
    return found


@cache
def _module(path: Path, changed_ns: int) -> ModuleType:
    """The file as a module, run once for each version of it."""
    name = f"ctpo_own_task_{digest(str(path))[:12]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"task {path} cannot be run ({type(error).__name__}: {reason}); mend the file"
        ) from None
    return module
