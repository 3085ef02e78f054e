"""Calls that are a name and an element for each argument, whose text is the value.

Qwen 3.5 and 3.6, Qwen3-Coder, Nemotron 3, GLM, MiniMax, Seed and DeepSeek 3.2 write calls like this:

    <tool_call>
    <function=python>
    <parameter=code>
    print(1)
    </parameter>
    </function>
    </tool_call>
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ctpo.rollout.native.written import NAME, Written

_CDATA = re.compile(r"\s*<!\[CDATA\[(?P<value>.*)\]\]>\s*", re.DOTALL)


@dataclass(frozen=True)
class TaggedCalls:
    """The reader of this form. All arguments are patterns.

    Args:
        before: what stands before the name.
        name_end: what stands after the name, before the first argument.
        key_open, key_end: what stands before and after the name of an argument.
        value_end: what stands after a value.
        closes: what may stand after the last argument, in this order.
        lines: whether the template writes a line feed before and after each value.
    """

    before: str
    name_end: str
    key_open: str
    key_end: str
    value_end: str
    closes: tuple[str, ...]
    lines: bool

    def next_call(self, text: str, start: int) -> int | None:
        match = re.compile(self.before).search(text, start)
        return None if match is None else match.start()

    def read(self, text: str, start: int) -> list[Written]:
        opening = re.compile(rf"{self.before}\s*(?P<name>{NAME})\s*{self.name_end}").match(text, start)
        if opening is None:
            return [self._unusable("the call has no name", text, start, start + 1)]
        place = opening.end()
        arguments: dict[str, str] = {}
        key = re.compile(rf"\s*{self.key_open}\s*(?P<key>[^\s<>\"']{{1,128}})\s*{self.key_end}")
        every = r"\s*".join(self.closes)
        after = "|".join((self.key_open, *self.closes, r"\Z"))
        value_end = re.compile(rf"(?P<end>{self.value_end})\s*(?={after})|{every}")
        while (argument := key.match(text, place)) is not None:
            ending = value_end.search(text, argument.end())
            if ending is not None and not ending["end"]:
                ending = self._later_end(text, ending, after) or ending
            if ending is None or not ending["end"]:
                end = len(text) if ending is None else ending.end()
                reason = f"argument {argument['key']!r} has no end"
                return [self._unusable(reason, text, start, end, opening["name"])]
            arguments[argument["key"]] = self._value(text[argument.end() : ending.start()])
            place = ending.end("end")
        end = self._closed(text, place)
        return [
            Written(
                name=opening["name"],
                arguments=arguments,
                text=text[start:end],
                end=end,
                as_text=True,
                as_json=False,
            )
        ]

    def _later_end(self, text: str, closed: re.Match[str], after: str) -> re.Match[str] | None:
        """The end of a value that itself holds the text of closing marks; None if another call begins before it."""
        ending = re.compile(rf"(?P<end>{self.value_end})\s*(?={after})").search(text, closed.end())
        if ending is None or re.compile(self.before).search(text, closed.end(), ending.start()):
            return None
        return ending

    def _value(self, text: str) -> str:
        quoted = _CDATA.fullmatch(text) if "<![CDATA[" in text[:64] else None
        if quoted is not None:
            return quoted["value"]
        return text.removeprefix("\n").removesuffix("\n") if self.lines else text

    def _closed(self, text: str, place: int) -> int:
        """Where the call ends, if its last argument ends at `place`."""
        for close in self.closes:
            closing = re.compile(rf"\s*{close}").match(text, place)
            place = place if closing is None else closing.end()
        return place

    def _unusable(self, reason: str, text: str, start: int, end: int, name: str | None = None) -> Written:
        return Written(name=name, error=reason, text=text[start:end], end=end, as_json=False)
