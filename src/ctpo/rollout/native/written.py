"""A call as it stands in a model's text, before anyone knows whether it can be used."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ctpo.tasks.calls import Unusable, kind_of

_NAMES: Final = ("name", "tool_name", "function_name")
_ARGUMENTS: Final = ("arguments", "parameters")
_IDS: Final = ("id", "tool_call_id", "call_id")
NAME: Final = r"[\w.:/-]{1,128}"
"""A pattern of the name of a function."""
_DECODER: Final = json.JSONDecoder(strict=False)  # models write line feeds into strings as they are


@dataclass(frozen=True, kw_only=True)
class Written:
    """One call of a model's turn."""

    name: Any = None
    """The name of the function as it was read; None if the call has none."""
    arguments: Any = None
    """The arguments as they were read: a dictionary, the text of one in JSON, or something unusable."""
    text: str
    """The call as it was written."""
    end: int
    """Where the call ends in the turn."""
    id: str | None = None
    """The call's own identifier, if the form has those."""
    as_text: bool = False
    """Whether every argument is text, because the form does not say what is a number."""
    as_json: bool = True
    """Whether the form is a JSON object with a name and arguments."""
    error: str | None = None
    """Why the call cannot be read; the other fields are then empty."""

    @staticmethod
    def of(value: Any, text: str, end: int) -> Written:
        """Return the call that a JSON object describes, with any of the names that models give to its parts."""
        if not isinstance(value, dict):
            reason = f"the call cannot be read as JSON ({kind_of(value)}, not an object)"
            return Written(error=reason, text=text, end=end)
        inner = value.get("function")
        if len(value) == 1 and isinstance(only := next(iter(value.values())), dict):
            (key,) = value
            if key not in _ARGUMENTS and key != "function":  # the form of Apertus: the name as the only key
                return Written(name=key, arguments=only, text=text, end=end)
        if isinstance(inner, dict):  # OpenAI's form
            value = {**value, **inner}
        name = next((value[key] for key in _NAMES if key in value), inner if isinstance(inner, str) else None)
        given = [value[key] for key in _ARGUMENTS if key in value]
        if not given:
            return Written(name=name, error="the call has no 'arguments'", text=text, end=end)
        if any(each != given[0] for each in given):
            return Written(name=name, error="'arguments' and 'parameters' differ", text=text, end=end)
        identifier = next((value[key] for key in _IDS if isinstance(value.get(key), str)), None)
        return Written(name=name, arguments=given[0], text=text, end=end, id=identifier)


class CallReader(Protocol):
    """Reads the calls of one form. Reading takes time that is linear in the length of the text."""

    def next_call(self, text: str, start: int) -> int | None:
        """Return where the next call opens at or after `start`, or None."""

    def read(self, text: str, start: int) -> list[Written]:
        """Return the calls that open at `start`; several where the form puts them into one list."""


def flexible(literal: str) -> str:
    """Return a pattern of the text, with any white space where the text has some, and none at its ends."""
    return r"\s*".join(re.escape(part) for part in literal.split())


def json_value(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON value that begins at `start`, and where it ends.

    Raises:
        Unusable: if there is none. The message says why.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        read = text[start : error.pos]
        column = len(read) - read.rfind("\n")
        reason = f"{error.msg}, line {read.count(chr(10)) + 1} column {column}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:  # an integer with thousands of digits
        reason = "a number is too long"
    raise Unusable(reason)
