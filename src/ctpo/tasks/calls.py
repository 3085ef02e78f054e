"""What a model's tool call asks for, checked against the functions that it may call.

A call that cannot be used gets a reason, in one line for the model to read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctpo.tasks.fences import first_block

FUNCTION: Final = "python"
"""The name under which a model calls the Python tool."""
PYTHON_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": FUNCTION,
        "description": "Run a Python program and return what it prints.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "the program"}},
            "required": ["code"],
        },
    },
}
"""The declaration of the Python tool that chat templates and servers take."""
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
"""The Python types of JSON schema's types."""


class Unusable(ValueError):
    """A tool call cannot be used. The message says why, in one line for the model."""


def checked_arguments(
    name: Any,
    arguments: Any,
    schemas: Sequence[Mapping[str, Any]],
    *,
    as_text: bool = False,
    as_json: bool = True,
) -> tuple[str, dict[str, Any]]:
    """Return the function's name and the arguments of a call that can be used.

    Whether a function other than Python takes these arguments is its own business (`ctpo.tasks.functions`).

    Args:
        name: of the function; None counts as the only one, if there is only one.
        arguments: a dictionary, or the text of one in JSON.
        schemas: the functions that may be called, as `transformers.utils.get_json_schema` describes them.
        as_text: whether the form of the call writes every argument as text. The schema then says which are numbers.
        as_json: whether a reason may show how the call is written as a JSON object.

    Raises:
        Unusable: if there is no such function, the arguments are no object, or a call of Python has no program.
    """
    functions = {each["function"]["name"]: each["function"] for each in schemas}
    if name is None and len(functions) == 1:
        (name,) = functions
    if not isinstance(name, str) or name not in functions:
        raise Unusable(f"there is no function {_shown(name)}; call {' or '.join(map(repr, functions))}")
    hint = f"; write {shape_of(functions[name])}" if as_json else ""
    values = _json(arguments, "arguments", hint) if isinstance(arguments, str) else arguments
    if not isinstance(values, dict):
        raise Unusable(f"arguments are {kind_of(values)}, not an object{hint}")
    if functions[name] is PYTHON_SCHEMA["function"]:
        return name, {"code": _program(values, hint)}
    if as_text:
        properties = (functions[name].get("parameters") or {}).get("properties") or {}
        values = {key: _typed(value, properties.get(key)) for key, value in values.items()}
    return name, values


def shape_of(function: Mapping[str, Any]) -> str:
    """Return a call of the function as a JSON object, with "..." for each required argument."""
    parameters = function.get("parameters") or {}
    arguments = dict.fromkeys(parameters.get("required") or (), "...")
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)


def object_in(text: str) -> dict[str, Any]:
    """Return the JSON object that a call's text is.

    Raises:
        Unusable: if it is none.
    """
    return _json(text, "the call", "")


def kind_of(value: Any) -> str:
    """Return what a value of JSON is, in words with an article."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _program(arguments: dict[str, Any], hint: str) -> str:
    if "code" not in arguments:
        raise Unusable(f"arguments have no 'code'{hint}")
    code = arguments["code"]
    if not isinstance(code, str):
        raise Unusable(f"'code' is {kind_of(code)}, not a string{hint}")
    if not code.strip():
        raise Unusable(f"'code' is empty{hint}")
    block = first_block(code) if code.lstrip().startswith(("```", "~~~")) else None
    return code if block is None or not block.closed else block.program  # some models put a fence here too


def _typed(text: Any, schema: Any) -> Any:
    """A value that was written as text, as the type that the schema declares; the text if it is none of that type."""
    types = _types(schema)
    if not isinstance(text, str) or not types or "string" in types:
        return text
    word = text.strip()
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(word, word))
    except (ValueError, RecursionError):
        return text
    return value if any(_is(value, each) for each in types) else text


def _types(schema: Any) -> set[str]:
    """The names of the types that a property may have; empty if any will do."""
    if not isinstance(schema, Mapping):
        return set()
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else set(declared or ())
    for choice in [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]:
        types |= _types(choice) or {"any"}
    if types and schema.get("nullable"):
        types.add("null")
    return types if types <= _KINDS.keys() else set()


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, float) and kind == "integer":
        return value.is_integer()
    return isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _json(text: str, what: str, hint: str) -> dict[str, Any]:
    if not text.strip():
        raise Unusable(f"{what} {'are' if what == 'arguments' else 'is'} empty{hint}")
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
        reason = f"{kind_of(value)}, not an object"
    raise Unusable(f"{what} cannot be read as JSON ({reason}){hint}")


def _shown(value: Any) -> str:
    return ascii(value[:40]) if isinstance(value, str) else kind_of(value)
