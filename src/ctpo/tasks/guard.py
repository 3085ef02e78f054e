"""Functions that users write for their tasks, with errors of one line: where in their code, on which problem.

An exception in code of this package keeps its traceback, because that is a defect of ours.
"""

from __future__ import annotations

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError

_PACKAGE: Final = __name__.partition(".")[0]
_OURS: Final = Path(__file__).resolve().parents[1]
_STANDARD: Final = Path(sysconfig.get_paths()["stdlib"]).resolve()
_INSTALLED: Final = {"site-packages", "dist-packages"}
_SHOWN: Final = 80

Complaint = Callable[[Any], str | None]
"""Says what should have been returned instead of a value, or None if the value is right."""


class CodeError(UserError):
    """A function of the user's raised an exception, or returned what it may not.

    Attributes:
        what: the fault, with the file and the line.
        about: the completion and the reference answer that were given, if any.
        problem: the id of the problem, as far as the caller knows it.
    """

    def __init__(self, what: str, about: Sequence[str] = (), problem: str | None = None) -> None:
        self.what, self.about, self.problem = what, tuple(about), problem
        named = [*([] if problem is None else [f"problem {problem}"]), *about]
        details = f" ({', '.join(named)})" if named else ""
        super().__init__(f"{what}{details}; correct it")


@contextmanager
def on_problem(name: str | None) -> Iterator[None]:
    """Errors of the user's code in this context name the problem.

    Raises:
        CodeError: with the problem.
    """
    try:
        yield
    except CodeError as error:
        if error.problem is not None or name is None:
            raise
        raise CodeError(error.what, error.about, name) from error.__cause__


class Guarded:
    """A function of the user's, or an object of theirs with methods, whose exceptions become a `CodeError`.

    It equals every other guard of the same function. What is not a method is the object's own.
    """

    def __init__(self, function: Any, part: str, complaint: Complaint | None = None) -> None:
        self.function, self._part, self._complaint = function, part, complaint

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            value = self.function(*args, **kwargs)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())[:160]
            raised = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
            where = place_of(error) or place_of_function(self.function)
            raise CodeError(f"task {where}: {self._part} raises {raised}", _about(args)) from error
        wrong = None if self._complaint is None else self._complaint(value)
        if wrong is not None:
            where = place_of_function(self.function)
            raise CodeError(f"task {where}: {self._part} returns {_short(value)}; {wrong}", _about(args))
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self.function, name)
        return Guarded(value, f"{self._part}.{name}") if callable(value) else value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Guarded) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)


def guarded(function: Any, part: str, complaint: Complaint | None = None) -> Any:
    """The function in a guard. A function of this package, and what is in a guard already, is returned as it is.

    Args:
        function: a function, a method, or an object that can be called.
        part: what it is of a task: "check".
        complaint: judges what it returns.
    """
    if isinstance(function, Guarded) or not callable(function) or _is_ours(function):
        return function
    return Guarded(function, part, complaint)


def place_of(error: BaseException) -> str | None:
    """The file and the line of the user's code that an exception went through last; None if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if frame.filename.startswith("<") or _INSTALLED.intersection(path.parts):
            continue
        if not (path.resolve().is_relative_to(_OURS) or path.resolve().is_relative_to(_STANDARD)):
            return f"{_shown(path)} line {frame.lineno}"
    return None


def place_of_function(function: Any) -> str:
    """The file and the first line of a function, or of the class of an object that can be called."""
    while isinstance(function, partial | Guarded):
        function = function.function if isinstance(function, Guarded) else function.func
    known = function if inspect.isroutine(function) else type(function)
    try:
        return f"{_shown(Path(inspect.getfile(known)))} line {inspect.getsourcelines(known)[1]}"
    except (TypeError, OSError):
        return repr(getattr(function, "__name__", type(function).__name__))


def _is_ours(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    module = function.__module__ if inspect.isroutine(function) else type(function).__module__
    return str(module).partition(".")[0] == _PACKAGE


def _shown(path: Path) -> str:
    """The path from the working directory if it is below that, or else the whole path."""
    shown = os.path.relpath(path) if path.is_absolute() else str(path)
    return str(path) if shown.startswith("..") else shown


def _about(args: Sequence[Any]) -> list[str]:
    """The completion and the reference answer, by which the user recognises the response."""
    return [
        f"the {name} {_short(text)}"
        for name, text in zip(("completion", "answer"), args, strict=False)
        if isinstance(text, str) and len(args) <= 2
    ]


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) > _SHOWN:
        value = f"{value[: _SHOWN // 2]} … {value[-_SHOWN // 3 :]}"
    text = repr(value)
    return text if len(text) <= 2 * _SHOWN else text[: 2 * _SHOWN] + " …"
