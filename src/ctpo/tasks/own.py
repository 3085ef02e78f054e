"""A user's own task, from a Python file: `FILE.py`, or `FILE.py:NAME` if the task is not called `task`.

What its functions raise becomes an error of one line that names the file and the line in it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import sysconfig
import traceback
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ctpo.errors import UserError
from ctpo.tasks.sources import DatasetSource
from ctpo.tasks.splits import digest
from ctpo.tasks.task import Problem, Task

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
    module = _module(path.resolve(), path.stat().st_mtime_ns)
    value = getattr(module, name, None)
    if not isinstance(value, Task):
        tasks = [each for each, other in vars(module).items() if isinstance(other, Task)]
        what = "holds no" if value is None else f"has {type(value).__name__}, not a Task, as"
        advice = f"write {path}:{tasks[0]}" if tasks else f"assign a ctpo.tasks.Task to {name}"
        raise UserError(f"task {place}: {path} {what} {name!r}; {advice}")
    for part in ("problems", "check"):
        if not callable(getattr(value, part)):
            raise UserError(f"task {place}: its {part} is {getattr(value, part)!r}; give a function")
    if isinstance(value.check, _Guarded):
        return value
    functions: dict[str, Any] = {
        part: getattr(value, part) for part in ("problems", "check", "extract", "reward")
    }
    guarded: dict[str, Any] = {
        part: _Guarded(function, part, path)
        for part, function in functions.items()
        if callable(function) and not isinstance(function, DatasetSource)
    }
    task = dataclasses.replace(value, **guarded)
    setattr(module, name, task)  # the same task the next time
    return task


class _Guarded:
    """A function of somebody's task file, or the methods of an object there, with errors of one line."""

    def __init__(self, function: Any, name: str, path: Path) -> None:
        self._function, self._name, self._path = function, name, path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            value = self._function(*args, **kwargs)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"task {self._path}{_line(error, self._path)}: {self._name} raises {type(error).__name__}: "
                f"{str(error)[:160]}{_about(args)}; correct it"
            ) from None
        if self._name == "problems" and not _are_problems(value):
            raise UserError(
                f"task {self._path}: problems returns {str(value)[:80]!r}; return a list of ctpo.tasks.Problem whose "
                "prompt, answer and id are text"
            )
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._function, name)
        return _Guarded(value, f"{self._name}.{name}", self._path) if callable(value) else value


def _line(error: BaseException, path: Path) -> str:
    """The last line of the file that the error went through."""
    frames = [
        each for each in traceback.extract_tb(error.__traceback__) if each.filename == str(path.resolve())
    ]
    return f" line {frames[-1].lineno}" if frames else ""


def _about(args: tuple[Any, ...]) -> str:
    """The reference answer, by which the user recognises the problem."""
    return f" (for the answer {args[1][:80]!r})" if len(args) == 2 and isinstance(args[1], str) else ""


def _are_problems(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, Problem) and all(isinstance(text, str) for text in vars(each).values())
        for each in value
    )


def files_of(task: Task) -> list[Path]:
    """The files of users' own tasks that this task comes from, and the files below their folders that they import.

    The first are those that hold a task with the same check. What is imported only when the check runs is left out.
    """
    own = [
        Path(str(module.__file__))
        for name, module in sys.modules.items()
        if name.startswith(_MODULE)
        and any(isinstance(each, Task) and each.check is task.check for each in vars(module).values())
    ]
    return own + [path for path in _imported() if any(path.is_relative_to(each.parent) for each in own)]


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
def _module(path: Path, changed_ns: int) -> ModuleType:
    """The file as a module. It is run once for each version of the file."""
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
            f"task {path}{_line(error, path)} cannot be run ({type(error).__name__}: {reason}); correct the file"
        ) from None
    return module
