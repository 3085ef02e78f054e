"""The program in a model's tool call, which is a JSON object: `{"name": "python", "arguments": {"code": …}}`.

A call that cannot be used becomes a program that fails with the reason. So it runs, is shown to the model and is
counted as any other program that fails, whichever engine sampled it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from ctpo.tasks.fences import first_block

FUNCTION: Final = "python"
"""The name of the only function that a model may call."""
_ARGUMENT_NAMES: Final = ("arguments", "parameters")
_SHAPE: Final = f'{{"name": "{FUNCTION}", "arguments": {{"code": "..."}}}}'


class Unusable(ValueError):
    """A tool call holds no program. The message says why, in one line for the model."""


def called_code(text: str) -> str:
    """Return the program of the call that the text holds, or one that fails with the reason why there is none.

    Example:
        called_code('{"name": "python", "arguments": {"code": "print(1)"}}')  # "print(1)"
        called_code('{"name": "search"}')  # "raise SystemExit('tool call: there is no function ...')"
    """
    try:
        call = _json(text, "the call")
        return code_of(call.get("name"), _arguments(call))
    except Unusable as reason:
        return failing_program(str(reason))


def code_of(name: Any, arguments: Any) -> str:
    """Return the program that a call of the function `name` with these arguments holds.

    Args:
        name: of the function; None counts as the Python tool, because there is no other.
        arguments: a dictionary, or the text of one in JSON.

    Raises:
        Unusable: if there is none.
    """
    if name is not None and name != FUNCTION:
        raise Unusable(f"there is no function {_shown(name)}; call {FUNCTION!r}")
    values = _json(arguments, "arguments") if isinstance(arguments, str) else arguments
    if not isinstance(values, dict):
        raise Unusable(f"arguments are {_kind(values)}, not an object; write {_SHAPE}")
    if "code" not in values:
        raise Unusable(f"arguments have no 'code'; write {_SHAPE}")
    code = values["code"]
    if not isinstance(code, str):
        raise Unusable(f"'code' is {_kind(code)}, not a string; write {_SHAPE}")
    if not code.strip():
        raise Unusable(f"'code' is empty; write {_SHAPE}")
    block = first_block(code) if code.lstrip().startswith(("```", "~~~")) else None
    return code if block is None or not block.closed else block.program  # some models put a fence here too


def failing_program(reason: str) -> str:
    """Return a program that prints the reason to stderr as one line, and fails."""
    return f"raise SystemExit({'tool call: ' + reason!r})"


def _arguments(call: dict[str, Any]) -> Any:
    given = [call[name] for name in _ARGUMENT_NAMES if name in call]
    if not given:
        raise Unusable(f"the call has no 'arguments'; write {_SHAPE}")
    if any(each != given[0] for each in given):
        raise Unusable(f"'arguments' and 'parameters' differ; write {_SHAPE}")
    return given[0]


def _json(text: str, what: str) -> dict[str, Any]:
    if not text.strip():
        raise Unusable(f"{what} is empty; write {_SHAPE}" if what == "the call" else f"{what} are empty")
    try:
        value = json.loads(text, strict=False)  # models write line feeds into strings as they are
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, line {error.lineno} column {error.colno}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:  # an integer with thousands of digits
        reason = "a number is too long"
    else:
        if isinstance(value, dict):
            return value
        reason = f"{_kind(value)}, not an object"
    raise Unusable(f"{what} cannot be read as JSON ({reason}); write {_SHAPE}")


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", dict: "an object", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    return ascii(value[:40]) if isinstance(value, str) else _kind(value)
