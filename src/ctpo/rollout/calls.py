"""The form in which a model calls tools, and in which it reads their results.

`call_format` chooses it for a model and the tools of a task:

    tags      the Python tool's own tags, for any model
    native    the calls of the model's chat template, if they can be read here
    fenced    blocks of code: programs in ```python, calls of other functions as JSON in ```tool_call

What the model is asked for (`declarations`, `instructions`) and what is read (`calls`) come from one object, so they
always agree.
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout.native.learn import learn_calls
from ctpo.rollout.native.written import CallReader, Written
from ctpo.rollout.results import Called, Framed, ToolMessages
from ctpo.rollout.template import Template
from ctpo.rollout.thinking import ends_thinking, next_thought, thought_end
from ctpo.tasks import CHAT_TOOL, PythonTool, fences
from ctpo.tasks.calls import FUNCTION, PYTHON_SCHEMA, Unusable, checked_arguments, object_in, shape_of

_PROGRAMS: Final = (
    "You can run Python: write a block that starts with {open} and ends with {close}, print what you need, and its "
    "output is shown to you."
)
_FUNCTIONS: Final = (
    "You can call functions: write a block that starts with ```{block} and ends with ```, with one JSON object in it, "
    "and the result is shown to you. The functions are:\n{functions}\nA call looks like this:\n```{block}\n{example}\n"
    "```"
)
_BETWEEN: Final = "\n\n"
"""What stands between several results where the form has room for one."""
_KNOWN: Final[weakref.WeakKeyDictionary[PreTrainedTokenizerBase, Any]] = weakref.WeakKeyDictionary()
"""The forms that were chosen for each tokenizer, because choosing one renders some dozen conversations."""
_REMEMBERED: Final = 8
_MOST_CALLS: Final = 128
"""How many calls of one turn are read."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One tool call of a model."""

    name: str
    """The function that is called: "python" for the Python tool. With an error, it may be no function at all."""
    arguments: Mapping[str, Any]
    """Its arguments; for the Python tool, the program as `code`. Empty if there is an error."""
    text: str
    """The call as the model wrote it."""
    error: str | None = None
    """Why the call cannot be used, in one line for the model to read."""
    id: str | None = None
    """The call's own identifier, in forms that have those."""


class CallFormat(Protocol):
    """The form of calls and results of one model."""

    @property
    def style(self) -> str:
        """`tags`, `fenced` or `native`."""

    @property
    def closing_characters(self) -> str:
        """The characters of which one ends every call in the middle of a turn."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts of which one stands at the end of such a call, for servers that take stop texts."""

    @property
    def answers_ends(self) -> bool:
        """Whether a turn may have calls that are read when the model has ended it, and not before."""

    @property
    def declarations(self) -> Sequence[Mapping[str, Any]]:
        """The functions that the chat template tells the model about; empty unless calls are native."""

    @property
    def instructions(self) -> str:
        """What a system message has to say for the model to know how to call; "" if something else says it."""

    def calls(self, text: str, *, ended: bool, continued: bool = False) -> list[Call]:
        """Return the calls that the model now waits for, in order.

        Args:
            text: what the model wrote since it was last answered, special tokens included.
            ended: whether the model has ended its turn. If not, the text may have just completed a call.
            continued: whether this response was answered before.
        """

    def result_ids(
        self,
        tokenizer: PreTrainedTokenizerBase,
        calls: Sequence[Call],
        results: Sequence[str],
        *,
        end: int | None = None,
    ) -> list[int]:
        """Return the tokens that follow the model's text: a result for each call, up to where the model goes on.

        Special tokens in a result stay text.

        Args:
            results: what each call came to, without any tags.
            end: the token with which the model ended its turn; None in the middle of a turn.
        """


def call_format(
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Any],
    template_kwargs: Mapping[str, Any] | None = None,
) -> CallFormat | None:
    """Return the form in which this model calls these tools; None without tools.

    Args:
        tools: the Python tool, functions (`ctpo.tasks.FunctionTool`), or both.
        template_kwargs: keyword arguments for the chat template.

    Raises:
        UserError: if the Python tool's style is native and the template has no calls that can be read here.
    """
    own = getattr(tokenizer, "response_template", None)
    key = (tokenizer.chat_template, tokenizer.eos_token, own, list(tools), dict(template_kwargs or {}))
    known: list[tuple[Any, CallFormat | None]] = _KNOWN.setdefault(tokenizer, [])
    for each, chosen in known:
        if each == key:
            return chosen
    known[:] = [*known[1 - _REMEMBERED :], (key, _chosen(tokenizer, tools, template_kwargs or {}))]
    return known[-1][1]


def _chosen(
    tokenizer: PreTrainedTokenizerBase, tools: Sequence[Any], template_kwargs: Mapping[str, Any]
) -> CallFormat | None:
    if not tools:
        return None
    python = next((tool for tool in tools if isinstance(tool, PythonTool)), None)
    if python is not None and python.style == "tags" and len(tools) == 1:
        return TagFormat(python)
    schemas = [PYTHON_SCHEMA if isinstance(tool, PythonTool) else tool.schema for tool in tools]
    style = "auto" if python is None else python.style
    template = Template(tokenizer, template_kwargs)
    if style in ("auto", "native"):
        declaring = dataclasses.replace(template, tools=schemas)
        messages = ToolMessages(declaring)
        reader = learn_calls(declaring) if messages.follow_calls else None
        if reader is not None:
            messages = ToolMessages(declaring, reader)
            endings = tokenizer.all_special_tokens
            return NativeFormat(schemas, python, messages, reader, endings, declaring.begins_thinking())
        if style == "native":
            raise UserError(
                "tool=native: the model's chat template has no calls with tool messages that can be read here; use "
                "tool=fenced"
            )
    messages = ToolMessages(template)
    in_text = messages.follow_text and style != "tags"
    return FencedFormat(schemas, python, messages if in_text else None, template.begins_thinking())


@dataclass(frozen=True)
class TagFormat:
    """Programs between the tool's own tags, and results between its result tags, wherever in the text."""

    tool: PythonTool
    style: str = "tags"
    answers_ends: bool = False
    declarations: Sequence[Mapping[str, Any]] = ()
    instructions: str = ""

    @property
    def closing_characters(self) -> str:
        return self.tool.closing_characters

    @property
    def stops(self) -> tuple[str, ...]:
        return self.tool.stops

    def calls(self, text: str, *, ended: bool, continued: bool = False) -> list[Call]:
        found = _last_program(self.tool, text)
        return [] if found is None else [found[2]]

    def result_ids(
        self,
        tokenizer: PreTrainedTokenizerBase,
        calls: Sequence[Call],
        results: Sequence[str],
        *,
        end: int | None = None,
    ) -> list[int]:
        return _between_tags(self.tool, results).ids(tokenizer)


@dataclass(frozen=True)
class FencedFormat:
    """Blocks of code. A result is a tool message of the chat template if it has those, else a block of output.

    Args:
        schemas: the functions that may be called, the Python tool's among them.
        python: the Python tool, if it is one of them.
        messages: the template's tool messages; None if a result stands between result tags in the assistant's text.
        begins_thinking: whether the model's text begins in the middle of thinking.
    """

    schemas: Sequence[Mapping[str, Any]]
    python: PythonTool | None
    messages: ToolMessages | None
    begins_thinking: bool = False
    style: str = "fenced"
    answers_ends: bool = False
    declarations: Sequence[Mapping[str, Any]] = ()

    @property
    def closing_characters(self) -> str:
        own = "" if self.python is None else self.python.closing_characters
        return own if self._others is None else "".join(dict.fromkeys(own + fences.CHARACTERS))

    @property
    def stops(self) -> tuple[str, ...]:
        own = () if self.python is None else self.python.stops
        return own if self._others is None else tuple(dict.fromkeys((*own, *fences.STOPS)))

    @property
    def instructions(self) -> str:
        parts = []
        if self.python is not None:
            parts.append(_PROGRAMS.format(open=self.python.open, close=self.python.close.strip()))
        if self._others is not None:
            functions = "\n".join(json.dumps(each["function"], ensure_ascii=False) for each in self._others)
            example = shape_of(self._others[0]["function"])
            parts.append(_FUNCTIONS.format(block=fences.CALL, functions=functions, example=example))
        return _BETWEEN.join(parts)

    def calls(self, text: str, *, ended: bool, continued: bool = False) -> list[Call]:
        found = self._last_call(text)
        inside = self.begins_thinking and not (continued and self.messages is None)
        if found is None or _in_thinking(text[: found[0]], inside):
            return []
        return [found[2]]

    def _last_call(self, text: str) -> tuple[int, int, Call] | None:
        """The last block of the text if it is complete, and where it begins and ends."""
        program = None if self.python is None else _last_program(self.python, text)
        if self._others is None:
            return program
        block = fences.last_block(text, (fences.CALL,))
        if block is None or not block.closed or (program is not None and program[0] > block.start):
            return program
        written = text[block.start : block.end]
        return block.start, block.end, block_call(block.program, written, self.schemas)

    def result_ids(
        self,
        tokenizer: PreTrainedTokenizerBase,
        calls: Sequence[Call],
        results: Sequence[str],
        *,
        end: int | None = None,
    ) -> list[int]:
        if self.messages is None:
            return _between_tags(self.python or CHAT_TOOL, results).ids(tokenizer)
        return self.messages.after_text(_BETWEEN.join(results)).ids(tokenizer)

    @property
    def _others(self) -> list[Mapping[str, Any]] | None:
        """The functions other than Python's; None without one."""
        return [each for each in self.schemas if each is not PYTHON_SCHEMA] or None


@dataclass(frozen=True)
class NativeFormat:
    """The calls of the model's chat template, which are read when the model has ended its turn.

    Several calls of one turn are answered together. A block of Python is run too, in the middle of a turn, because
    models write those out of habit.

    Args:
        declarations: the functions that may be called, the Python tool's among them.
        python: the Python tool, if it is one of them.
        messages: the template's tool messages.
        reader: reads the template's calls.
        endings: the texts of the tokens that may end a turn.
        begins_thinking: whether the model's text begins in the middle of thinking.
    """

    declarations: Sequence[Mapping[str, Any]]
    python: PythonTool | None
    messages: ToolMessages
    reader: CallReader
    endings: Sequence[str]
    begins_thinking: bool = False
    style: str = "native"
    instructions: str = ""
    answers_ends: bool = True

    @property
    def closing_characters(self) -> str:
        return "" if self.python is None else self.python.closing_characters

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.python is None else self.python.stops

    def calls(self, text: str, *, ended: bool, continued: bool = False) -> list[Call]:
        for ending in self.endings:
            text = text.removesuffix(ending) if ended else text
        written = self._spoken(text)
        if written:
            return [_checked(each, self.declarations) for each in written] if ended else []
        found = None if self.python is None else _last_program(self.python, text)
        if found is None or _in_thinking(text[: found[0]], self.begins_thinking):
            return []
        return [] if ended and text[found[1] :].strip() else [found[2]]

    def result_ids(
        self,
        tokenizer: PreTrainedTokenizerBase,
        calls: Sequence[Call],
        results: Sequence[str],
        *,
        end: int | None = None,
    ) -> list[int]:
        if end is None and self.messages.follow_text:
            return self.messages.after_text(_BETWEEN.join(results)).ids(tokenizer)
        names = [each["function"]["name"] for each in self.declarations]
        called = [Called(call.name if call.name in names else names[0], call.id) for call in calls]
        ended = None if end is None else tokenizer.decode([end], skip_special_tokens=False)
        return self.messages.after_calls(called, results, ended).ids(tokenizer)

    def _spoken(self, text: str) -> list[Written]:
        """The calls outside of thinking, in order. Every part of the text is looked at once."""
        written: list[Written] = []
        place = thought_end(text, 0) if self.begins_thinking else 0
        call, thought = self.reader.next_call(text, place), next_thought(text, place)
        while call is not None and len(written) < _MOST_CALLS:
            if thought is not None and thought < call:
                place = thought_end(text, thought)
            else:
                written += self.reader.read(text, call)
                place = max(written[-1].end, call + 1)
            if call < place:
                call = self.reader.next_call(text, place)
            if thought is not None and thought < place:
                thought = next_thought(text, place)
        return written[:_MOST_CALLS]  # one list may hold any number


def _last_program(tool: PythonTool, text: str) -> tuple[int, int, Call] | None:
    """The last program of the text if its block or tag is closed, and where that begins and ends."""
    if tool.fenced:
        block = fences.last_block(text)
        if block is None or not block.closed:
            return None
        program, start, end = block.program, block.start, block.end
    else:
        between = tool.last_call(text)
        if between is None:
            return None
        program, start, end = between, text.rfind(tool.open), len(text)
    return start, end, Call(name=FUNCTION, arguments={"code": program}, text=text[start:end])


def block_call(body: str, text: str, schemas: Sequence[Mapping[str, Any]]) -> Call:
    """The call that a block of JSON holds.

    Args:
        body: what stands in the block.
        text: the whole block.
        schemas: the functions that may be called.
    """
    try:
        written = Written.of(object_in(body), text, 0)
    except Unusable as reason:
        written = Written(error=str(reason), text=text, end=0)
    return _checked(written, schemas)


def _checked(written: Written, schemas: Sequence[Mapping[str, Any]]) -> Call:
    error = written.error
    if error is None:
        try:
            name, arguments = checked_arguments(
                written.name, written.arguments, schemas, as_text=written.as_text, as_json=written.as_json
            )
            return Call(name=name, arguments=arguments, text=written.text, id=written.id)
        except Unusable as reason:
            error = str(reason)
    name = written.name if isinstance(written.name, str) else ""
    return Call(name=name, arguments={}, text=written.text, id=written.id, error=error)


def _between_tags(tool: PythonTool, results: Sequence[str]) -> Framed:
    return Framed((tool.result_open, tool.result_close), (_BETWEEN.join(results),))


def _in_thinking(text: str, begins_thinking: bool) -> bool:
    place = thought_end(text, 0) if begins_thinking else 0
    if begins_thinking and place == len(text):
        return True
    return ends_thinking(text[place:])
