"""One conversation with a model behind an endpoint: its requests, its tool calls, and where its text is cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ctpo.errors import UserError, well_formed
from ctpo.rollout.calls import Call, FencedFormat, block_call
from ctpo.rollout.chat import with_instructions
from ctpo.rollout.records import ToolCall
from ctpo.rollout.remote.endpoint import Endpoint, RequestFailed
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import ToolRunner
from ctpo.tasks import CHAT_TOOL, PythonTool, Task, fences
from ctpo.tasks.calls import FUNCTION, PYTHON_SCHEMA, Unusable, checked_arguments
from ctpo.tasks.prompts import HOW_TO_CALL, Prompt
from ctpo.tasks.tool import SUCCESS

_FENCE = "```"
_CLOSE = "\n```"
_REASONING = ("reasoning_content", "reasoning")
"""The names under which servers return the thinking that they have taken out of a message."""


@dataclass(kw_only=True)
class Reply:
    """The outcome of one prompt."""

    text: str = ""
    """Everything after the prompt, tool calls and their outputs included."""
    tokens: int = 0
    """How many tokens the model sampled, by the server's count."""
    calls: list[ToolCall] = field(default_factory=list)
    turn_rewards: list[float] = field(default_factory=list)
    """What an environment gave each turn; NaN for one that it could not score."""
    finished: bool = False
    error: str | None = None
    """Why a request of this conversation failed. The text from before it is kept."""


class Server:
    """An endpoint, and what the conversations with it have learned about the server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.refuses_tools = False
        """Whether the server has refused a request because of its `tools`."""

    def note_refusal(self, tool: PythonTool | None, reason: str) -> None:
        """Use blocks of code from now on.

        Raises:
            UserError: if the task wants native tool calls.
        """
        if tool is not None and tool.style == "native":
            raise UserError(
                f"tool=native: the endpoint takes no tool calls ({reason}); start vLLM with "
                "--enable-auto-tool-choice --tool-call-parser NAME, or use tool=fenced"
            )
        self.refuses_tools = True


class Conversation:
    """One conversation in progress. A subclass says how turns are requested and how results are sent."""

    def __init__(
        self,
        server: Server,
        task: Task,
        tools: ToolRunner | None,
        prompt: Prompt,
        sampling: Sampling,
        seed: int | None,
    ) -> None:
        self.reply = Reply()
        self.done = False
        self.last_text = ""
        """The text of the last turn, without thinking that the server has taken out."""
        self.calls: list[Call] = []
        """The calls of the last turn, which are to be made."""
        self._server, self._sampling, self._seed = server, sampling, seed
        self._tool = None if tools is None else tools.tool
        self._functions = () if tools is None else task.functions
        self._quota = None if tools is None else tools.quota()
        self._first_prompt_tokens: int | None = None
        self._used = 0
        self._template_kwargs = dict(task.template_kwargs)
        self._begin(task, prompt)

    @property
    def may_call(self) -> bool:
        return self._quota is not None and self._quota.left > 0

    def turn(self) -> None:
        """Request the next turn, and set `calls` to those that it makes."""
        try:
            self._turn()
        except RequestFailed as failure:
            self.reply.error = str(failure)
            self.reply.finished = False  # an earlier turn may have set it
            self.done = True
        else:
            self.done = not self.calls or self._used >= self._sampling.max_new_tokens
            self.calls = [] if self.done or self._quota is None else self._quota.admit(self.calls)

    def add_results(self, calls: list[ToolCall]) -> None:
        """Add what the calls returned to the conversation."""
        raise NotImplementedError

    def go_on(self, messages: Sequence[Mapping[str, str]]) -> None:
        """Add what an environment says, and let the model take another turn."""
        self.reply.text += "".join(f"\n\n{message['content']}\n\n" for message in messages)
        self.done = self._used >= self._sampling.max_new_tokens

    def _begin(self, task: Task, prompt: Prompt) -> None:
        raise NotImplementedError

    def _turn(self) -> None:
        raise NotImplementedError

    def _request(self, path: str, **payload: Any) -> tuple[dict[str, Any], bool]:
        """The first choice of the server's answer, and whether the model or a stop text ended it."""
        sampling = self._sampling
        drawn: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.top_k:
            drawn["top_k"] = sampling.top_k  # vLLM and SGLang know it, OpenAI does not
        if self._seed is not None:
            drawn["seed"] = self._seed
        payload = {name: value for name, value in payload.items() if value}
        answer = self._server.endpoint.post(
            path, {**payload, **drawn, "max_tokens": sampling.max_new_tokens - self._used}
        )
        try:
            choice, usage = answer["choices"][0], answer["usage"]
            before, new = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise RequestFailed("the answer has no choice or no usage") from None
        if not isinstance(choice, dict):
            raise RequestFailed("the answer has no choice or no usage")
        if self._first_prompt_tokens is None:
            self._first_prompt_tokens = before
        self._used = before - self._first_prompt_tokens + new  # the tool's outputs count too
        self.reply.tokens += new
        self.reply.finished = choice.get("finish_reason") in ("stop", "tool_calls")
        return choice, self.reply.finished


class TextConversation(Conversation):
    """A bare prompt that the model continues."""

    def _begin(self, task: Task, prompt: Prompt) -> None:
        assert isinstance(prompt, str)
        self._prompt = prompt

    def _turn(self) -> None:
        tool = self._tool
        stop = [tool.close] if tool is not None and self.may_call else []
        choice, ended = self._request("completions", prompt=self._prompt + self.reply.text, stop=stop)
        self.calls, text = [], _text(choice.get("text"))
        if stop and tool is not None:
            text, program = tool.first_call(text, stopped=ended and choice.get("stop_reason", "") is not None)
            self.calls = [] if program is None else [_of_python(program)]
        self.last_text = text
        self.reply.text += text

    def go_on(self, messages: Sequence[Mapping[str, str]]) -> None:
        self.reply.text += "".join(message["content"] for message in messages)
        self.done = self._used >= self._sampling.max_new_tokens

    def add_results(self, calls: list[ToolCall]) -> None:
        self.reply.calls += calls
        self.reply.text += "".join(call.output for call in calls)


class ChatConversation(Conversation):
    """Messages. The model calls tools by the server's tool calls or by blocks of code."""

    def _begin(self, task: Task, prompt: Prompt) -> None:
        messages = task.messages(prompt)
        # Servers refuse a tool message without a tool call before it, so examples show blocks of code.
        self._messages: list[dict[str, Any]] = [
            _user(self._tool.render(SUCCESS, message["content"], ""))
            if message["role"] == "tool" and self._tool is not None
            else {**message}
            for message in messages
        ]
        self._task = task
        self._ids: list[str] = []
        self._schemas: list[Mapping[str, Any]] = [] if self._tool is None else [PYTHON_SCHEMA]
        self._schemas += [_for_server(function.schema) for function in self._functions]
        python = self._tool is not None and self._tool.fenced
        self._languages: tuple[str, ...] = (
            *((fences.PYTHON,) if python else ()),
            *((fences.CALL,) if self._functions else ()),
        )

    def _turn(self) -> None:
        self.calls, self._ids = [], []
        choice = self._next_message()
        message = choice["message"]
        thinking, text = _thinking(message), _text(message.get("content"))
        made = _calls(message.get("tool_calls"), self._schemas)
        if made and self.may_call:
            self.calls = [each.call for each in made]
            self._ids = [each.id for each in made]
            sent = [each.message for each in made]
            self._messages.append({"role": "assistant", "content": text, "tool_calls": sent})
            self.reply.text += thinking + text + "".join(each.call.text for each in made)
            return
        if self.may_call and self._languages:
            stopped = choice.get("finish_reason") == "stop" and choice.get("stop_reason", "") is not None
            text, self.calls = self._first_block(text, stopped=stopped)
        self._messages.append({"role": "assistant", "content": text})
        self.last_text = text
        self.reply.text += thinking + text

    def go_on(self, messages: Sequence[Mapping[str, str]]) -> None:
        super().go_on(messages)
        self._messages += [dict(message) for message in messages]

    def _first_block(self, text: str, *, stopped: bool) -> tuple[str, list[Call]]:
        """The text up to the end of its first block that is a call, and that call.

        Args:
            stopped: whether a stop text ended the text. Then the closing fence may be missing, and is put back.
        """
        block = fences.first_block(text, self._languages)
        if block is None or not (block.closed or stopped):
            return text, []
        text = text[: block.end] + ("" if block.closed else _CLOSE)
        if block.language == fences.CALL:
            return text, [block_call(block.program, text[block.start :], self._schemas)]
        return text, [_of_python(block.program)]

    def _next_message(self) -> dict[str, Any]:
        """The choice with the next message. Tools are offered if the server takes them; if not, blocks are used."""
        tool, server = self._tool, self._server
        if not self._schemas:
            return self._choice()
        if (tool is None or tool.style in ("auto", "native")) and not server.refuses_tools:
            try:
                return self._choice(tools=self._schemas)
            except RequestFailed as failure:
                if failure.status is None or failure.status >= 500:
                    raise
                refusal = failure
            # This fails too if the server refused something other than the tools.
            choice = self._block_choice()
            server.note_refusal(tool, str(refusal))
            return choice
        return self._block_choice()

    def _block_choice(self) -> dict[str, Any]:
        """The choice with the next message, which ends after a block that is a call."""
        messages = self._messages
        if self._functions or HOW_TO_CALL in (self._task.system or ""):
            form = FencedFormat(self._schemas, self._tool, None)
            messages = with_instructions(messages, form.instructions, self._task)
        if not self.may_call or not self._languages:
            return self._choice(messages)
        # The line feed after the fence is needed: "\n```" alone also begins a block.
        stop = _CLOSE + "\n"
        tokens, used = self.reply.tokens, self._used
        choice = self._choice(messages, stop=[stop])
        text = _text(choice["message"].get("content"))
        # Most servers leave out the stop text; the server of transformers keeps it.
        calls = fences.first_block(text + "\n", self._languages) is not None
        if not calls and (text.count(_FENCE) % 2 or text.endswith(stop)):
            # It stopped after a block that is no call. A message cannot be continued, so it is requested again
            # without a stop text.
            self.reply.tokens, self._used = tokens, used
            return self._choice(messages)
        return choice

    def _choice(self, messages: list[dict[str, Any]] | None = None, **payload: Any) -> dict[str, Any]:
        # vLLM and SGLang take the keyword arguments, OpenAI does not.
        payload["chat_template_kwargs"] = self._template_kwargs
        choice, _ = self._request("chat/completions", messages=messages or self._messages, **payload)
        if not isinstance(choice.get("message"), dict):
            raise RequestFailed("the answer has no message")
        return choice

    def add_results(self, calls: list[ToolCall]) -> None:
        self.reply.calls += calls
        shown = [self._shown(call) for call in calls]
        self.reply.text += "".join(shown)
        if self._ids:
            tool = self._tool or CHAT_TOOL
            self._messages += [
                {"role": "tool", "tool_call_id": name, "content": tool.body(call.output)}
                for name, call in zip(self._ids, calls, strict=True)
            ]
        else:
            self._messages.append(_user("".join(shown)))

    def _shown(self, call: ToolCall) -> str:
        """A result between tags, so that whoever judges the response does not take it for the model's words."""
        return (
            call.output if self._tool is not None and call.name == FUNCTION else CHAT_TOOL.framed(call.output)
        )


def _user(output: str) -> dict[str, Any]:
    """The message that answers a block of code with its output."""
    return {"role": "user", "content": output.strip()}


def _text(content: Any) -> str:
    """The text of a message's content, which is a string, a list of parts, or None."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _thinking(message: dict[str, Any]) -> str:
    """The thinking that the server has taken out of a message, in the form in which models write it.

    Without content or a call after it, the model has not ended its thinking.
    """
    text = next((_text(message.get(name)) for name in _REASONING if message.get(name)), "")
    if not text:
        return ""
    ended = _text(message.get("content")) or message.get("tool_calls")
    return f"<think>\n{text}" + ("\n</think>\n\n" if ended else "")


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call that a server has read from the model's text."""

    id: str
    call: Call
    """The call, and as its text what a response shows of it."""
    message: dict[str, Any]
    """The call as it is sent back, with arguments that every server can read."""


def _calls(given: Any, schemas: Sequence[Mapping[str, Any]]) -> list[_Call]:
    return [_call(call, schemas) for call in given] if isinstance(given, list) else []


def _call(given: Any, schemas: Sequence[Mapping[str, Any]]) -> _Call:
    given = given if isinstance(given, dict) else {}
    function = given.get("function")
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    identifier = str(given.get("id"))
    try:
        known, values = checked_arguments(name, arguments, schemas)
    except Unusable as reason:
        text = arguments if isinstance(arguments, str) else _dumped(arguments)
        called = name if isinstance(name, str) else FUNCTION
        call = Call(
            name=called, arguments={}, text=f"\n<tool_call>\n{name} {text}\n</tool_call>", error=str(reason)
        )
        # A server reads the arguments of earlier calls again, and would refuse the conversation because of these.
        values = {"code": text}
    else:
        called = known
        program = values.get("code") if known == FUNCTION else None
        shown = (
            f"```python\n{program}\n```"
            if program
            else f"<tool_call>\n{known} {_dumped(values)}\n</tool_call>"
        )
        call = Call(name=known, arguments=values, text=f"\n{shown}")
        if isinstance(arguments, str) and well_formed(_dumped(values)) == _dumped(values):
            return _Call(id=identifier, call=call, message=given)
    function = {"name": called, "arguments": _dumped(values)}
    return _Call(
        id=identifier, call=call, message={"id": identifier, "type": "function", "function": function}
    )


def _of_python(program: str) -> Call:
    return Call(name=FUNCTION, arguments={"code": program}, text=program)


def _for_server(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The declaration without the type of the result, which OpenAI's protocol does not have."""
    function = {name: value for name, value in schema["function"].items() if name != "return"}
    return {**schema, "function": function}


def _dumped(arguments: Any) -> str:
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (ValueError, RecursionError):  # an integer with thousands of digits, or lists in lists in lists
        return "..."
