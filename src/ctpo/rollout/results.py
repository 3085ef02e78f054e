"""How a chat template writes the results of tools, between two texts of the assistant."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from ctpo.rollout.native.written import CallReader
from ctpo.rollout.template import Message, Template, plain_ids, template_ids

_QUESTION: Final = {"role": "user", "content": "WHAT-WAS-ASKED"}
_LAST: Final = "WHAT-WAS-WRITTEN"
_RESULT: Final = "WHAT-CAME-BACK-{}-"
_ID: Final = re.compile(r"[\w.:-]{1,64}")
_OWN_ID: Final = "call{:05}"  # nine characters, as Mistral's templates demand
_REMEMBERED: Final = 256


@dataclass(frozen=True)
class Called:
    """A call as a template needs to know it."""

    name: str
    """The name of a declared function."""
    id: str | None = None
    """The call's own identifier."""


@dataclass(frozen=True)
class Framed:
    """Results as a template writes them: a text before each, and one after the last."""

    frames: tuple[str, ...]
    """The template's own texts, one more than results."""
    bodies: tuple[str, ...]
    """The results, as the template writes their contents; some make a string of JSON of it."""

    def text(self) -> str:
        """Return all of it as one text."""
        return "".join(a + b for a, b in zip(self.frames, (*self.bodies, ""), strict=True))

    def ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return the tokens. Only the template's own texts can become special tokens."""
        known = _encoded.setdefault(tokenizer, {})
        if self not in known:
            if len(known) >= _MOST_ENCODED:
                known.clear()
            known[self] = [
                token
                for frame, body in zip(self.frames, (*self.bodies, ""), strict=True)
                for token in template_ids(tokenizer, frame) + plain_ids(tokenizer, body)
            ]
        return list(known[self])


_MOST_ENCODED: Final = 10_000
"""The number of results whose tokens are kept per tokenizer. Responses to one problem get the same results."""
_encoded: WeakKeyDictionary[PreTrainedTokenizerBase, dict[Framed, list[int]]] = WeakKeyDictionary()


class ToolMessages:
    """The tool messages of one model.

    Everything is taken from what the template makes of small conversations. So what is inserted into a response is,
    character for character, what the template would render for the conversation.

    Args:
        template: the model's.
        reader: reads the template's calls, and so knows where they end. Without it, `after_calls` cannot be used.
    """

    def __init__(self, template: Template, reader: CallReader | None = None) -> None:
        self._template = template
        self._reader = reader
        self._known: dict[tuple[Called, ...] | None, _Conversation | None] = {}

    @property
    def follow_text(self) -> bool:
        """Whether a result may answer an assistant's message that has no calls of the template's own."""
        return self._conversation(None) is not None

    @property
    def follow_calls(self) -> bool:
        """Whether a result may answer a call of the template's own."""
        return self._conversation((Called("python"),)) is not None

    def after_text(self, result: str) -> Framed:
        """Return a result that answers an assistant's text, which the model has not ended. Needs `follow_text`."""
        conversation = self._conversation(None)
        assert conversation is not None
        return Framed(tuple(conversation.frames), (self._body(conversation, 0, result),))

    def after_calls(self, calls: Sequence[Called], results: Sequence[str], end: str | None) -> Framed:
        """Return the results of calls. Needs `follow_calls`.

        Args:
            end: the text of the token with which the model ended its turn; None if it did not end it.
        """
        conversation = self._conversation(tuple(calls))
        if conversation is None:  # an identifier that the template refuses
            conversation = self._conversation(tuple(Called(call.name) for call in calls))
        if conversation is None:  # at least as many results as the template takes
            calls, results = calls[:1], ["\n\n".join(results)]
            conversation = self._conversation((Called(calls[0].name),))
        assert conversation is not None
        first, *rest = conversation.frames
        bodies = [self._body(conversation, i, result) for i, result in enumerate(results)]
        return Framed((self._after_end(first, end), *rest), tuple(bodies))

    def _conversation(self, calls: tuple[Called, ...] | None) -> _Conversation | None:
        if calls not in self._known:
            if len(self._known) >= _REMEMBERED:  # the identifiers are the model's, so there may be any number
                self._known.clear()
            self._known[calls] = self._first_rendered(calls)
        return self._known[calls]

    def _first_rendered(self, calls: tuple[Called, ...] | None) -> _Conversation | None:
        """The first conversation with these calls that the template renders with all of its results."""
        if calls is None:
            candidates = [_Conversation([{"role": "assistant", "content": _LAST}], (Called("python"),))]
        else:
            spoken = [_assistant(calls), _assistant(calls, as_text=True)]
            if len(calls) > 1:  # some templates allow one call per message
                spoken.append(_assistant(calls[:1]))
            spoken.append({"role": "assistant", "content": _LAST})  # and some have calls in the text
            candidates = [_Conversation([each], calls) for each in spoken]
        for conversation in candidates:
            probes = [_RESULT.format(i) for i in range(len(conversation.calls))]
            text = self._template.render(conversation.messages(probes))
            if text is not None and conversation.learn(text, probes, self._reader):
                return conversation
        return None

    def _body(self, conversation: _Conversation, i: int, result: str) -> str:
        """What the template writes for the content of the i-th result."""
        probes = [_RESULT.format(j) for j in range(len(conversation.calls))]
        before, _, after = conversation.text.partition(probes[i])
        probes[i] = result
        whole = self._template.render(conversation.messages(probes)) or ""
        if len(whole) < len(before) + len(after) or not (whole.startswith(before) and whole.endswith(after)):
            return result
        return whole[len(before) : len(whole) - len(after)]

    def _after_end(self, frame: str, end: str | None) -> str:
        """The part of the text behind the calls that the model has not written itself."""
        own = self._template.tokenizer.eos_token
        if end is None:
            return frame
        if end not in frame and own and own in frame:
            end = own  # the model has ended its turn in another way than the template
        return frame.partition(end)[2] if end in frame else frame


class _Conversation:
    """A conversation of a question, what the assistant wrote, and results; and how the template renders it."""

    def __init__(self, assistant: list[Message], calls: tuple[Called, ...]) -> None:
        self._assistant = assistant
        self.calls = calls
        self.text = ""
        self.frames: list[str] = []

    def messages(self, results: Sequence[str]) -> list[Message]:
        tools = [
            {"role": "tool", "name": call.name, "tool_call_id": _id(i, call), "content": result}
            for i, (call, result) in enumerate(zip(self.calls, results, strict=True))
        ]
        return [_QUESTION, *self._assistant, *tools]

    def learn(self, text: str, results: Sequence[str], reader: CallReader | None) -> bool:
        """Take the texts around the results from a rendering. Returns whether it has all of them once, in order."""
        if _LAST not in text or any(text.count(result) != 1 for result in results):
            return False
        end = text.rfind(_LAST) + len(_LAST)
        rest = text[max(end, _calls_end(text, text.find(results[0]), reader)) :]
        for result in results:
            frame, seen, rest = rest.partition(result)
            if not seen:
                return False
            self.frames.append(frame)
        self.frames.append(rest)
        self.text = text
        return bool(self.frames[0] and rest)


def _calls_end(text: str, limit: int, reader: CallReader | None) -> int:
    """Where the last call before the limit ends."""
    place = text.rfind(_QUESTION["content"], 0, limit)
    end = 0
    if reader is not None and reader.next_call(text, place) is None:
        place = max(
            text.find("{", place), place
        )  # a form without an opening marker is read from its beginning
    while reader is not None and (call := reader.next_call(text, place)) is not None and call < limit:
        place = end = reader.read(text[:limit], call)[-1].end
    return end


def _assistant(calls: Sequence[Called], *, as_text: bool = False) -> Message:
    arguments: Any = {"code": _LAST}
    if as_text:  # the templates of DeepSeek want the arguments as JSON
        arguments = json.dumps(arguments)
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": _id(i, call), "function": {"name": call.name, "arguments": arguments}}
            for i, call in enumerate(calls)
        ],
    }


def _id(i: int, call: Called) -> str:
    return call.id if call.id and _ID.fullmatch(call.id) else _OWN_ID.format(i)
