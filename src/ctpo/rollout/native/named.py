"""Calls that are a name and a JSON object of arguments, between markers.

DeepSeek, gpt-oss, Mistral, Kimi, Functionary and Gemma write calls like this:

    [TOOL_CALLS]python[ARGS]{"code": "print(1)"}
    <start_function_call>call:python{code:<escape>print(1)<escape>}<end_function_call>
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ctpo.rollout.native.written import NAME, Written, flexible, json_value
from ctpo.tasks.calls import Unusable


@dataclass(frozen=True)
class NamedCalls:
    """The reader of this form.

    Args:
        before: a pattern of what stands before the name.
        between: a pattern of what stands between the name and the arguments. A group `id` is the call's identifier.
        close: the marker after the arguments; "" if there is none.
        quote: the marker around strings in place of quotation marks; keys then have no quotation marks either.
    """

    before: str
    between: str
    close: str
    quote: str | None = None

    def next_call(self, text: str, start: int) -> int | None:
        match = re.compile(self.before).search(text, start)
        return None if match is None else match.start()

    def read(self, text: str, start: int) -> list[Written]:
        opening = re.compile(rf"{self.before}\s*(?P<name>{NAME}?)\s*{self.between}\s*(?=\{{)").match(
            text, start
        )
        if opening is None:
            end = self._after(text, start)
            return [_unusable("the call has no name with arguments after it", text, start, end)]
        place = opening.end()
        try:
            if self.quote is None:
                arguments, end = json_value(text, place)
            else:
                arguments, end = self._quoted_value(text, place, self.quote)
        except Unusable as reason:
            end = self._after(text, start)
            return [_unusable(f"the arguments cannot be read ({reason})", text, start, end, opening["name"])]
        closing = re.compile(r"\s*" + flexible(self.close)).match(text, end)
        end = end if closing is None else closing.end()
        groups = opening.groupdict()
        return [
            Written(
                name=opening["name"],
                arguments=arguments,
                text=text[start:end],
                end=end,
                id=groups.get("id"),
                as_json=False,
            )
        ]

    def _quoted_value(self, text: str, start: int, quote: str) -> tuple[object, int]:
        """The object whose keys have no quotation marks and whose strings stand between two of `quote`, and its end."""
        parts: list[str] = []
        depth, place = 0, start
        marks = re.compile(rf"(?P<quote>{re.escape(quote)})|[{{}}\[\]]|{flexible(self.close)}|{self.before}")
        while (match := marks.search(text, place)) is not None:
            parts.append(_with_keys(text[place : match.start()]))
            place = match.end()
            if match["quote"]:
                closing = text.find(quote, place)
                if closing < 0:
                    raise Unusable(f"a string has no closing {quote}")
                parts.append(json.dumps(text[place:closing]))
                place = closing + len(quote)
            elif match[0] in "{[}]":
                parts.append(match[0])
                depth += 1 if match[0] in "{[" else -1
                if depth == 0:
                    return json_value("".join(parts), 0)[0], place
            else:
                break
        raise Unusable("the object has no end")

    def _after(self, text: str, start: int) -> int:
        """Where a call that cannot be read ends: at its closing marker, the next call, or the end."""
        following = self.next_call(text, start + 1)
        end = len(text) if following is None else following
        closing = re.compile(flexible(self.close)).search(text, start, end) if self.close else None
        return end if closing is None else closing.end()


def _unusable(reason: str, text: str, start: int, end: int, name: str | None = None) -> Written:
    return Written(name=name, error=reason, text=text[start:end], end=end, as_json=False)


def _with_keys(text: str) -> str:
    return re.sub(r"(?<![\w.\"-])([A-Za-z_]\w*)(\s*:)", r'"\1"\2', text)
