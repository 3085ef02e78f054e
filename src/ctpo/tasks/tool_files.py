"""A user's own functions as tools, by their places: `FILE.py:NAME` or `package.module:NAME`."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ctpo.errors import UserError, one_line
from ctpo.tasks.functions import FunctionTool, as_tools
from ctpo.tasks.own import module_at

_PLACE: Final = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)|(?P<module>\w+(?:\.\w+)*):(?P<function>\w+)")


def tools_at(places: Sequence[str]) -> tuple[FunctionTool, ...]:
    """Return the functions at these places as tools. The files and modules are run.

    Raises:
        UserError: if a place has another form, does not exist, or holds no function that can be a tool.
    """
    return as_tools([_function_at(place) for place in places])


def _function_at(place: str) -> Any:
    match = _PLACE.fullmatch(place)
    if match is None:
        raise UserError(f"tool {place!r} is no place; write FILE.py:FUNCTION or package.module:FUNCTION")
    module = _file(place, Path(match["file"])) if match["file"] else _module(place, match["module"])
    name = match["name"] or match["function"]
    value = getattr(module, name, None)
    if isinstance(value, FunctionTool):
        return value
    if not callable(value) or isinstance(value, type):
        what = (
            f"there is no {name!r} in it"
            if value is None
            else f"its {name!r} is of type {type(value).__name__}"
        )
        raise UserError(f"tool {place}: {what}; name a typed function or a ctpo.tasks.FunctionTool")
    return value


def _file(place: str, path: Path) -> ModuleType:
    if not os.path.isfile(path):  # Path.is_file raises an error for a name that is too long
        raise UserError(f"tool {place}: {path} does not exist; give a Python file")
    return module_at(path.resolve(), path.stat().st_mtime_ns)


def _module(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        reason = one_line(f"{type(error).__name__}: {error}")[:160]
        raise UserError(
            f"tool {place}: {name} cannot be imported ({reason}); install it, or write FILE.py:FUNCTION"
        ) from None
