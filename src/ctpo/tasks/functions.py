"""A Python function as a tool: its declaration, the check of a call's arguments, and the text of what it returns."""

from __future__ import annotations

import inspect
import json
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

from ctpo.errors import UserError, one_line, well_formed
from ctpo.extras import require
from ctpo.tasks.tool import without_middle

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
"""The names that templates and servers take for a function."""
_EXACT: Final = 2**53
"""Up to this size, a float without a fraction is one integer and no other."""
_SHOWN_ERRORS: Final = 3
_LONGEST_SHOWN: Final = 60
_NAMED_KINDS: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_WORDS: Final = {dict: "an object", list: "a list", type(None): "null"}


class UnusableArguments(ValueError):
    """A call's arguments do not fit the function. The message says why, for the model to read."""


@dataclass(frozen=True)
class FunctionTool:
    """A Python function that a model may call by its name.

    The model reads the function's name, its docstring and the types of its arguments, as
    `transformers.utils.get_json_schema` declares them. So the docstring describes every argument, in Google's form.

    The function runs in this process, with everything that this process may do, and so does nothing isolate it. Its
    arguments are written by a model: never pass them to a shell, to `eval`, or to a path without a check. Calls of
    different responses run at the same time in different threads. State that the function keeps is shared by all
    responses.

    Args:
        function: a function, a bound method or a coroutine function. Every parameter has a type hint.

    Raises:
        UserError: if a declaration cannot be made from the function, or a setting is out of range.

    Example:
        def search(query: str, limit: int = 5) -> list[str]:
            \"\"\"Search the library.

            Args:
                query: words that the title contains
                limit: how many titles to return
            \"\"\"
            return [title for title in TITLES if query in title][:limit]

        tool = FunctionTool(search, timeout_s=2.0)
        tool.arguments({"query": "tea", "limit": 3.0})  # {"query": "tea", "limit": 3}
    """

    function: Callable[..., Any]
    _: KW_ONLY
    name: str = ""
    """The name that the model calls; the function's own if this is empty."""
    timeout_s: float = 10.0
    """How many seconds one call may take. A coroutine is then cancelled. Nothing can stop another function: its result
    is not waited for any longer, and it goes on in its thread."""
    max_calls: int = 8
    """How many calls of this function a response may make. Later calls are not run."""
    max_result_chars: int = 4096
    """The longest result in characters. Of a longer one the middle is left out."""
    deterministic: bool = False
    """Whether equal arguments give equal results. Then a call that was made before need not be made again."""
    schema: Mapping[str, Any] = field(init=False, compare=False, repr=False)
    """The declaration that chat templates and servers take."""
    _types: Mapping[str, Any] = field(init=False, compare=False, repr=False)
    """The check of each parameter's values."""

    def __post_init__(self) -> None:
        require("a function as a tool", "train", "transformers", "pydantic")
        if not callable(self.function):
            raise UserError(f"tool {self.function!r} is not a function; give one, or a FunctionTool")
        name = self.name or getattr(self.function, "__name__", "")
        if not _NAME.fullmatch(name):
            raise UserError(
                f"tool {name or self.function!r} has no name that a model can call; use letters, digits and _: "
                "FunctionTool(function, name='search')"
            )
        object.__setattr__(self, "name", name)
        for setting in ("max_calls", "max_result_chars"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"tool {name}: {setting}={value!r} is not a positive integer; use at least 1")
        seconds = self.timeout_s
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise UserError(f"tool {name}: timeout_s={seconds!r} is out of range; use seconds, more than 0")
        types = _types_of(self.function, name)
        object.__setattr__(self, "schema", _schema_of(self.function, name))
        object.__setattr__(self, "_types", types)

    @property
    def is_async(self) -> bool:
        """Whether a call of the function is a coroutine."""
        return inspect.iscoroutinefunction(self.function)

    def arguments(self, given: Any) -> dict[str, Any]:
        """The arguments of a call as the function takes them.

        Only what loses nothing is converted: 3.0 to an integer, an integer to a float, an enumeration's value to its
        member, and an unpaired surrogate to U+FFFD.

        Args:
            given: what the model wrote, as JSON gives it.

        Raises:
            UnusableArguments: if they do not fit.
        """
        if not isinstance(given, Mapping):
            raise UnusableArguments(f"arguments are {_kind(given)}, not an object; {self._usage()}")
        wrong = [f"there is no argument {_shown(each)}" for each in given if each not in self._types]
        required = self.schema["function"]["parameters"].get("required", ())
        wrong += [f"argument {each!r} is missing" for each in required if each not in given]
        values: dict[str, Any] = {}
        for name in given:
            if name in self._types:
                try:
                    values[name] = self._value(name, given[name])
                except ValueError as reason:
                    wrong.append(f"argument {name!r} {reason}")
        if wrong:
            raise UnusableArguments("; ".join([*wrong[:_SHOWN_ERRORS], self._usage()]))
        return values

    def _value(self, name: str, given: Any) -> Any:
        """The value of one argument.

        Raises:
            ValueError: saying what is wrong with it.
        """
        from pydantic import ValidationError

        try:
            value = _plain(given)
            text = json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            raise ValueError("holds what JSON does not have, such as NaN or lists without end") from None
        _check_choice(value, self.schema["function"]["parameters"]["properties"][name])
        try:
            return self._types[name].validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            # In a union, the place holds the names of the types that were tried.
            inside = "".join(f"[{each}]" for each in first["loc"] if isinstance(each, int))
            reason = first["msg"].removeprefix("Input should be ")
            raise ValueError(f"{inside + ' ' if inside else ''}is {_shown(value)}; use {reason}") from None

    def _usage(self) -> str:
        """The arguments and their types, in words."""
        parameters = self.schema["function"]["parameters"]
        required = parameters.get("required", ())
        parts = [
            f"{name} ({_type_in_words(each)}{'' if name in required else ', optional'})"
            for name, each in parameters["properties"].items()
        ]
        return f"the arguments of {self.name} are {', '.join(parts)}" if parts else f"{self.name} takes none"

    def result(self, value: Any) -> str:
        """What the function returned, as the text that the model reads: text as it is, and other values as JSON.

        What JSON does not have is shown as `repr` shows it.
        """
        if isinstance(value, str):
            text = str(value)
        else:
            try:
                text = json.dumps(value, ensure_ascii=False)
            except (TypeError, ValueError, RecursionError):
                text = repr(value)
        return self.cut(text)

    def failure(self, error: BaseException) -> str:
        """What a function that raised this error tells the model: the error's type and message, and no traceback."""
        ending = f"[error: {self.name} failed]"
        room = max(self.max_result_chars - len(ending) - 1, 1)
        return self.cut(f"{without_middle(describe(error), room)}\n{ending}")

    def out_of_time(self) -> str:
        """What the model reads if a call has taken too long."""
        return self.cut(f"[timeout: {self.name} gave no result in {self.timeout_s:g} seconds]")

    def cut(self, text: str) -> str:
        """The text in at most `max_result_chars` characters, without its middle if it is longer."""
        return well_formed(without_middle(text, self.max_result_chars))


def describe(error: BaseException) -> str:
    """An error's type and message, whatever its class makes of them."""
    try:
        message = str(error)
    except Exception:
        message = ""
    return f"{type(error).__name__}: {message}" if message.strip() else type(error).__name__


def as_tools(given: Iterable[Any]) -> tuple[FunctionTool, ...]:
    """Functions and `FunctionTool`s as tools.

    Raises:
        UserError: if two of them have the same name.
    """
    tools = tuple(each if isinstance(each, FunctionTool) else FunctionTool(each) for each in given)
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two tools are called {name!r}; give one another name: FunctionTool(f, name=...)"
            )
    return tools


def _types_of(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The check of each parameter's values, as pydantic makes it from the type hint."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(f"tool {name} yields its results; return them, for example as a list")
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = typing.get_type_hints(function)
    except (TypeError, ValueError, NameError, AttributeError) as error:
        raise UserError(
            f"tool {name}: its type hints cannot be read ({error}); give a typed function"
        ) from None
    types: dict[str, Any] = {}
    for each in parameters:
        if each.kind not in _NAMED_KINDS:
            shown = str(each.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty))
            raise UserError(
                f"tool {name}: a model cannot give {shown!r} by name; give every parameter a name of its own"
            )
        if each.name not in hints:
            raise UserError(f"tool {name}: parameter {each.name!r} has no type hint; write {each.name}: str")
        try:
            types[each.name] = TypeAdapter(hints[each.name])
        except (PydanticUserError, TypeError) as error:
            reason = one_line(str(error)).partition(". ")[0]
            raise UserError(
                f"tool {name}: a model cannot write parameter {each.name!r} ({reason}); use int, float, str, bool, "
                "list, dict, Literal or an Enum"
            ) from None
    return types


def _schema_of(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The declaration of the function, under this name."""
    from transformers.utils.chat_template_utils import (
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    if not inspect.getdoc(function):
        raise UserError(f"tool {name} has no docstring; say in one what it does and what each argument means")
    try:
        schema: dict[str, Any] = get_json_schema(function)
    except (DocstringParsingException, TypeHintParsingException, ValueError) as error:
        reason = one_line(" ".join(str(each) for each in error.args)).partition(". ")[0]
        raise UserError(
            f"tool {name} cannot be declared ({reason}); give every argument a type that JSON has, and a line under "
            "'Args:' in the docstring"
        ) from None
    return {**schema, "function": {**schema["function"], "name": name}}


def _check_choice(value: Any, schema: Mapping[str, Any]) -> None:
    """Check a value against the values that a declaration lists.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if "enum" not in schema or schema.get("type") == "array" or (value is None and schema.get("nullable")):
        return
    choices = [_plain(each) for each in schema["enum"]]
    if not any(value == each and type(value) is type(each) for each in choices):
        raise ValueError(f"is {_shown(value)}, not one of {without_middle(json.dumps(choices), 400)}")


def _plain(value: Any) -> Any:
    """The JSON value with integers for floats without a fraction, and without unpaired surrogates."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _type_in_words(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + without_middle(json.dumps(schema["enum"]), 200)
    kinds = schema.get("type") or [each.get("type", "any") for each in schema.get("anyOf", [{}])]
    words = " or ".join(str(kind) for kind in (kinds if isinstance(kinds, list) else [kinds]))
    inner = schema.get("items")
    return f"{words} of {_type_in_words(inner)}" if words == "array" and inner else words


def _kind(value: Any) -> str:
    """The value's type as the model knows it."""
    return _WORDS.get(type(value), _shown(value))


def _shown(value: Any) -> str:
    """A value in a few characters of JSON."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value).__name__)
    return well_formed(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")
