"""Calls that are JSON objects with a name and arguments, alone or in a list, between two markers.

Hermes, Qwen 2.5 and 3, SmolLM3, Granite, Phi-4, Command, older Mistral and Llama 3 write calls like this:

    <tool_call>
    {"name": "python", "arguments": {"code": "print(1)"}}
    </tool_call>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from ctpo.rollout.native.written import Written, json_value
from ctpo.tasks.calls import Unusable

_SEPARATORS: Final = re.compile(r"[\s,;]*")
_BARE: Final = re.compile(r'\s*(?:<\|python_tag\|>\s*)?(?=\{\s*"(?:name|type|function)")')


@dataclass(frozen=True)
class ObjectCalls:
    """The reader of this form.

    Args:
        open: the marker before the JSON; "" if a turn with a call is nothing but JSON.
        close: the marker after it; "" if the turn ends there.
    """

    open: str
    close: str

    def next_call(self, text: str, start: int) -> int | None:
        if not self.open:
            bare = _BARE.match(text, start)
            return None if bare is None else bare.start()
        place = text.find(self.open, start)
        return None if place < 0 else place

    def read(self, text: str, start: int) -> list[Written]:
        bare = _BARE.match(text, start) if not self.open else None
        begin = start + len(self.open) if bare is None else bare.end()
        try:
            values, end = self._values(text, begin)
        except Unusable as reason:
            end = self._after(text, begin)
            return [Written(error=f"the call {reason}", text=text[start:end], end=end)]
        written = text[start:end]
        return [Written.of(value, written, end) for value in values]

    def _values(self, text: str, begin: int) -> tuple[list[Any], int]:
        """The JSON values from here to the closing marker, and where that ends."""
        values: list[Any] = []
        place = _skip(text, begin)
        while not values or (place < len(text) and text[place] in "{["):
            if place == len(text) or (self.close and text.startswith(self.close, place)):
                raise Unusable("is empty")
            try:
                value, place = json_value(text, place)
            except Unusable as reason:
                raise Unusable(f"cannot be read as JSON ({reason})") from None
            values += value if isinstance(value, list) and value else [value]
            place = _skip(text, place)
        if self.close and text.startswith(self.close, place):
            return values, place + len(self.close)
        if self.close and place < len(text):
            raise Unusable("cannot be read as JSON (text follows the object)")
        return values, place

    def _after(self, text: str, begin: int) -> int:
        """Where a call that cannot be read ends: at its closing marker, the next call, or the end."""
        ends = [place for place in (text.find(self.open, begin) if self.open else -1,) if place >= 0]
        if self.close:
            closing = text.find(self.close, begin, min(ends, default=len(text)))
            if closing >= 0:
                return closing + len(self.close)
        return min(ends, default=len(text))


def _skip(text: str, place: int) -> int:
    match = _SEPARATORS.match(text, place)
    assert match is not None
    return match.end()
