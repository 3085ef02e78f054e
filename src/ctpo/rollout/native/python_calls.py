"""Calls that are written as Python calls with keyword arguments, in a list between markers.

LFM 2 and others write calls like this:

    <|tool_call_start|>[python(code="print(1)"), search(query="tea", limit=3)]<|tool_call_end|>
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any, Final

from ctpo.rollout.native.written import Written, flexible, json_value
from ctpo.tasks.calls import Unusable

_CALL: Final = re.compile(r"[\s,;]*(?P<name>[A-Za-z_][\w.-]{0,127})\s*\(\s*")
_KEY: Final = re.compile(r"(?P<key>[A-Za-z_]\w{0,127})\s*=\s*")
_STRING: Final = re.compile(r"'''(?:[^\\]|\\.)*?'''|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_WORD: Final = re.compile(r"[^\s,()\[\]{}'\"]+")
_COMMA: Final = re.compile(r"\s*,?\s*")
_AFTER_VALUE: Final = re.compile(r"\s*(?:[,)\]}:]|$)")
_END_OF_TEXT: Final = r"(?=\s*(?:,\s*[A-Za-z_]\w*\s*=|\)\s*(?:[\],;<]|\Z)))"
_WORDS: Final = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_DEEPEST: Final = 50


@dataclass(frozen=True)
class PythonCalls:
    """The reader of this form.

    Args:
        open, close: the markers around the calls, without the brackets of the list.
    """

    open: str
    close: str

    def next_call(self, text: str, start: int) -> int | None:
        place = text.find(self.open, start)
        return None if place < 0 else place

    def read(self, text: str, start: int) -> list[Written]:
        calls: list[Written] = []
        place = _skipped(text, start + len(self.open), "[")
        while (call := _CALL.match(text, place)) is not None:
            begin = call.start("name")
            try:
                arguments, place = _arguments(text, call.end())
            except Unusable as reason:
                end = self._end(text, begin)
                calls.append(
                    Written(
                        name=call["name"],
                        error=f"the call of {call['name']} cannot be read ({reason})",
                        text=text[begin:end],
                        end=end,
                        as_json=False,
                    )
                )
                return calls
            calls.append(
                Written(
                    name=call["name"], arguments=arguments, text=text[begin:place], end=place, as_json=False
                )
            )
        if not calls:
            end = self._end(text, start)
            nothing = "no call stands between the markers"
            return [Written(error=nothing, text=text[start:end], end=end, as_json=False)]
        return calls

    def _end(self, text: str, start: int) -> int:
        following = self.next_call(text, start + 1)
        end = len(text) if following is None else following
        closing = re.compile(flexible(self.close)).search(text, start, end) if self.close else None
        return end if closing is None else closing.end()


def _arguments(text: str, place: int) -> tuple[dict[str, Any], int]:
    """The keyword arguments of a call whose parenthesis has just opened, and where that closes."""
    arguments: dict[str, Any] = {}
    while not text.startswith(")", place):
        key = _KEY.match(text, place)
        if key is None:
            raise Unusable("write each argument as name=value")
        arguments[key["key"]], place = _value(text, key.end(), 0)
        place = _after_comma(text, place, ")")
    return arguments, place + 1


def _value(text: str, place: int, depth: int) -> tuple[Any, int]:
    string = _STRING.match(text, place)
    if string is not None and _AFTER_VALUE.match(text, string.end()):
        return _string(string[0]), string.end()
    if text[place : place + 1] in ("'", '"'):  # some templates write quotation marks in strings as they are
        ending = re.compile(text[place] + _END_OF_TEXT).search(text, place + 1)
        if ending is None:
            raise Unusable("a string has no end")
        return text[place + 1 : ending.start()], ending.start() + 1
    if depth > _DEEPEST:
        raise Unusable("nested too deeply")
    if text.startswith("[", place):
        return _list(text, place + 1, depth)
    if text.startswith("{", place):
        return _dictionary(text, place + 1, depth)
    word = _WORD.match(text, place)
    if word is None:
        raise Unusable("a value or its end is missing")
    if word[0] in _WORDS:
        return _WORDS[word[0]], word.end()
    value, end = json_value(text, place)
    if end != word.end():
        raise Unusable(f"{word[0][:40]!r} is no value")
    return value, end


def _string(literal: str) -> str:
    quote = literal[0] * (3 if literal.startswith("'''") else 1)
    try:  # line feeds are allowed in every string here
        value = ast.literal_eval(literal.replace("\n", "\\n") if len(quote) == 1 else literal)
    except (ValueError, SyntaxError, MemoryError):
        return literal[len(quote) : -len(quote)]
    return value if isinstance(value, str) else literal


def _list(text: str, place: int, depth: int) -> tuple[list[Any], int]:
    values: list[Any] = []
    place = _skipped(text, place)
    while not text.startswith("]", place):
        value, place = _value(text, place, depth + 1)
        values.append(value)
        place = _after_comma(text, place, "]")
    return values, place + 1


def _dictionary(text: str, place: int, depth: int) -> tuple[dict[str, Any], int]:
    values: dict[str, Any] = {}
    place = _skipped(text, place)
    while not text.startswith("}", place):
        key = _STRING.match(text, place)
        colon = None if key is None else re.compile(r"\s*:\s*").match(text, key.end())
        if key is None or colon is None:
            raise Unusable("write a dictionary as {'key': value}")
        values[_string(key[0])], place = _value(text, colon.end(), depth + 1)
        place = _after_comma(text, place, "}")
    return values, place + 1


def _after_comma(text: str, place: int, close: str) -> int:
    """Where the next item or the closing bracket stands."""
    separator = _COMMA.match(text, place)
    assert separator is not None
    if "," not in separator[0] and not text.startswith(close, separator.end()):
        raise Unusable(f"a comma or {close} is missing")
    return separator.end()


def _skipped(text: str, place: int, bracket: str = "") -> int:
    match = re.compile(rf"\s*{re.escape(bracket)}{'?' if bracket else ''}\s*").match(text, place)
    assert match is not None
    return match.end()
