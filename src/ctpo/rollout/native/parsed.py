"""Calls that transformers' own response parsing reads, for tokenizers that came with a `response_template`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ctpo.rollout.native.written import Written


@dataclass(frozen=True)
class ParsedCalls:
    """The reader of this form.

    Args:
        tokenizer: whose `parse_response` reads a call.
        spec: its `response_template`, with the field of tool calls alone.
        open, close: the patterns of that field.
        tools: the functions that may be called, by which arguments are typed.
    """

    tokenizer: PreTrainedTokenizerBase
    spec: Mapping[str, Any]
    open: str
    close: str
    tools: Sequence[Mapping[str, Any]]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]]) -> ParsedCalls | None:
        """The reader of a tokenizer; None if it has no `response_template`, or that names no tool calls."""
        spec = getattr(tokenizer, "response_template", None)
        field = spec.get("fields", {}).get("tool_calls") if isinstance(spec, dict) else None
        if not isinstance(spec, dict) or not isinstance(field, dict):
            return None
        opening, close = (_pattern(field, each) for each in ("open", "close"))
        if not opening or not close:
            return None
        try:
            re.compile(opening), re.compile(close)
        except re.error:  # transformers has expressions that Python's own module lacks
            return None
        return ParsedCalls(tokenizer, {**spec, "fields": {"tool_calls": field}}, opening, close, tools)

    def next_call(self, text: str, start: int) -> int | None:
        match = re.compile(self.open, re.DOTALL).search(text, start)
        return None if match is None else match.start()

    def read(self, text: str, start: int) -> list[Written]:
        closing = re.compile(self.close, re.DOTALL).search(text, start + 1)
        end = len(text) if closing is None else max(closing.end(), start + 1)
        written = text[start:end]
        try:
            tools = [dict(each) for each in self.tools]
            parsed = self.tokenizer.parse_response(written, dict(self.spec), prefix="", tools=tools)
            calls = [each["function"] for each in parsed.get("tool_calls") or ()]
            read = [(each["name"], each.get("arguments") or {}) for each in calls]
        except Exception as error:  # a parser of the model's own, on whatever the model wrote
            reason = f"the call cannot be read ({' '.join(str(error).split())[:200]})"
            return [Written(error=reason, text=written, end=end, as_json=False)]
        if not read:
            return [Written(error="the call cannot be read", text=written, end=end, as_json=False)]
        return [
            Written(name=name, arguments=given, text=written, end=end, as_json=False) for name, given in read
        ]


def _pattern(field: Mapping[str, Any], name: str) -> str:
    literal = field.get(name)
    literals = [literal] if isinstance(literal, str) else list(literal or ())
    return str(field.get(f"{name}_pattern") or "|".join(re.escape(each) for each in literals))
