"""A user's own task, from a Python file: `FILE.py`, or `FILE.py:NAME` if the task is not called `task`."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from dataclasses import replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from ctpo.errors import UserError
from ctpo.tasks.guard import Guarded, place_of
from ctpo.tasks.splits import digest
from ctpo.tasks.task import Task

_PLACE = re.compile(r"(.*\.py)(?::(\w+))?")
_USUAL_NAME = "task"
_MODULE = "ctpo_own_task_"
_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD = Path(sysconfig.get_paths()["stdlib"]).resolve()


def is_own_task(place: str) -> bool:
    """Whether this names a Python file, and not a shipped task or a dataset."""
    return _PLACE.fullmatch(place) is not None


def own_task(place: str) -> Task:
    """The `Task` of that name in the file, which is run as a module; it can import others that lie beside it.

    Raises:
        UserError: if the file is missing or raises, or holds no such task.
    """
    match = _PLACE.fullmatch(place)
    assert match is not None
    path, name = Path(match[1]), match[2] or _USUAL_NAME
    if not os.path.isfile(path):  # Path.is_file raises an error for a name that is too long
        raise UserError(
            f"task {place}: {path} does not exist; give a Python file that defines a ctpo.tasks.Task"
        )
    module = module_at(path.resolve(), path.stat().st_mtime_ns)
    value = getattr(module, name, None)
    if not isinstance(value, Task):
        tasks = [each for each, other in vars(module).items() if isinstance(other, Task)]
        what = "holds no" if value is None else f"has {type(value).__name__}, not a Task, as"
        advice = f"write {path}:{tasks[0]}" if tasks else f"assign a ctpo.tasks.Task to {name}"
        raise UserError(f"task {place}: {path} {what} {name!r}; {advice}")
    needed = ("problems",) if value.check is None else ("problems", "check")
    for part in needed:
        if not callable(getattr(value, part)):
            raise UserError(f"task {place}: its {part} is {getattr(value, part)!r}; give a function")
    if value.check is not None and not isinstance(value.check, Guarded):
        # It is a check of this package. `files_of` knows the file by the guard.
        value = replace(value, check=Guarded(value.check, "check"))
        setattr(module, name, value)  # the same task the next time
    return value


def files_of(task: Task) -> list[Path]:
    """The files of users' own tasks that this task comes from, and the files below their folders that they import.

    The first are those that hold a task with the same check. What is imported only when the check runs is left out.
    """
    heart = _heart(task)
    if heart is task.check and not isinstance(heart, Guarded):
        return []  # a shipped check, which several files may share; a task of one's own has it guarded
    own = [
        Path(str(module.__file__))
        for name, module in sys.modules.items()
        if name.startswith(_MODULE)
        and any(isinstance(each, Task) and _heart(each) is heart for each in vars(module).values())
    ]
    return own + [path for path in _imported() if any(path.is_relative_to(each.parent) for each in own)]


def _heart(task: Task) -> object:
    """What tells a task from others."""
    return task.environment if task.check is None else task.check


def _imported() -> list[Path]:
    """The source files of all modules but this package, installed packages, the program and users' own tasks."""
    package = __name__.partition(".")[0]
    named = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    files = [
        Path(file).resolve()
        for name, file in named.items()
        if isinstance(file, str)
        and os.path.isabs(file)  # torch has modules whose file is none
        and name != "__main__"
        and name.partition(".")[0] != package
        and not name.startswith(_MODULE)
    ]
    return [
        file
        for file in files
        if file.suffix == ".py"
        and file.is_file()
        and not (_INSTALLED.intersection(file.parts) or file.is_relative_to(_STANDARD))
    ]


@cache
def module_at(path: Path, changed_ns: int) -> ModuleType:
    """The file as a module. It is run once for each version of the file.

    Raises:
        UserError: if it raises, with the line in it.
    """
    name = f"{_MODULE}{digest(str(path))[:12]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up a module by its name
    if str(path.parent) not in sys.path:
        sys.path.append(
            str(path.parent)
        )  # for modules beside the file; last, so that none takes a package's place
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{place_of(error) or path} cannot be run ({type(error).__name__}: {reason}); correct the file"
        ) from None
    return module
