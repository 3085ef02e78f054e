"""One conversation with a model behind an endpoint: its requests, its tool calls, and where its text is cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ctpo.errors import UserError, well_formed
from ctpo.rollout.chat import TOOL_SCHEMA
from ctpo.rollout.records import ToolCall
from ctpo.rollout.remote.endpoint import Endpoint, RequestFailed
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import PythonTool, Task
from ctpo.tasks.calls import FUNCTION, Unusable, code_of, failing_program
from ctpo.tasks.prompts import Prompt
from ctpo.tasks.tool import SUCCESS

_FENCE = "```"
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

    def note_refusal(self, tool: PythonTool, reason: str) -> None:
        """Use blocks of code from now on.

        Raises:
            UserError: if the task wants native tool calls.
        """
        if tool.style == "native":
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
        tool: PythonTool | None,
        prompt: Prompt,
        sampling: Sampling,
        seed: int | None,
    ) -> None:
        self.reply = Reply()
        self.done = False
        self.said = ""
        """The text of the last turn, without thinking that the server has taken out."""
        self.programs: list[str] = []
        self._server, self._tool, self._sampling, self._seed = server, tool, sampling, seed
        self._first_prompt_tokens: int | None = None
        self._used = 0
        self._begin(task, prompt)

    @property
    def may_call(self) -> bool:
        return self._tool is not None and len(self.reply.calls) < self._tool.max_calls

    def turn(self) -> None:
        """Request the next turn, and set `programs` to those that it calls."""
        try:
            self._turn()
        except RequestFailed as failure:
            self.reply.error = str(failure)
            self.reply.finished = False  # an earlier turn may have set it
            self.done = True
        else:
            self.done = not self.programs or self._used >= self._sampling.max_new_tokens
            if self.done:
                self.programs = []

    def add_results(self, calls: list[ToolCall]) -> None:
        """Add what the programs printed to the conversation."""
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
        self.programs, text = [], _text(choice.get("text"))
        if stop and tool is not None:
            text, program = tool.first_call(text, stopped=ended and choice.get("stop_reason", "") is not None)
            self.programs = [] if program is None else [program]
        self.said = text
        self.reply.text += text

    def go_on(self, messages: Sequence[Mapping[str, str]]) -> None:
        self.reply.text += "".join(message["content"] for message in messages)
        self.done = self._used >= self._sampling.max_new_tokens

    def add_results(self, calls: list[ToolCall]) -> None:
        self.reply.calls += calls
        self.reply.text += "".join(call.output for call in calls)


class ChatConversation(Conversation):
    """Messages. The model calls the tool by the server's tool calls or by blocks of code."""

    def _begin(self, task: Task, prompt: Prompt) -> None:
        messages = task.messages(prompt)
        # Servers refuse a tool message without a tool call before it, so examples show blocks of code.
        self._messages: list[dict[str, Any]] = [
            _user(self._tool.render(SUCCESS, message["content"], ""))
            if message["role"] == "tool" and self._tool is not None
            else {**message}
            for message in messages
        ]
        self._ids: list[str] = []

    def _turn(self) -> None:
        self.programs, self._ids = [], []
        choice = self._next_message()
        message = choice["message"]
        thinking, text = _thinking(message), _text(message.get("content"))
        calls = _calls(message.get("tool_calls"))
        if calls and self.may_call:
            self.programs = [call.program for call in calls]
            self._ids = [call.id for call in calls]
            sent = [call.message for call in calls]
            self._messages.append({"role": "assistant", "content": text, "tool_calls": sent})
            self.reply.text += thinking + text + "".join(call.text for call in calls)
            return
        if self._tool is not None and self.may_call and self._tool.fenced:
            stopped = choice.get("finish_reason") == "stop" and choice.get("stop_reason", "") is not None
            text, program = self._tool.first_call(text, stopped=stopped)
            self.programs = [] if program is None else [program]
        self._messages.append({"role": "assistant", "content": text})
        self.said = text
        self.reply.text += thinking + text

    def go_on(self, messages: Sequence[Mapping[str, str]]) -> None:
        super().go_on(messages)
        self._messages += [dict(message) for message in messages]

    def _next_message(self) -> dict[str, Any]:
        """The choice with the next message. Tools are offered if the server takes them; if not, blocks are used."""
        tool, server = self._tool, self._server
        if tool is None:
            return self._choice()
        if tool.style in ("auto", "native") and not server.refuses_tools:
            try:
                return self._choice(tools=[TOOL_SCHEMA])
            except RequestFailed as failure:
                if failure.status is None or failure.status >= 500:
                    raise
                refusal = failure
            # This fails too if the server refused something other than the tools.
            choice = self._block_choice(tool)
            server.note_refusal(tool, str(refusal))
            return choice
        return self._block_choice(tool)

    def _block_choice(self, tool: PythonTool) -> dict[str, Any]:
        """The choice with the next message, which ends after a block of code."""
        if not self.may_call or not tool.fenced:
            return self._choice()
        # The line feed after the fence is needed: "\n```" alone also begins a block.
        stop = tool.close + "\n"
        tokens, used = self.reply.tokens, self._used
        choice = self._choice(stop=[stop])
        text = _text(choice["message"].get("content"))
        # Most servers leave out the stop text; the server of transformers keeps it.
        if not tool.opens_call(text + "\n") and (text.count(_FENCE) % 2 or text.endswith(stop)):
            # It stopped after a block that is no program. A message cannot be continued, so it is requested again
            # without a stop text.
            self.reply.tokens, self._used = tokens, used
            return self._choice()
        return choice

    def _choice(self, **payload: Any) -> dict[str, Any]:
        choice, _ = self._request("chat/completions", messages=self._messages, **payload)
        if not isinstance(choice.get("message"), dict):
            raise RequestFailed("the answer has no message")
        return choice

    def add_results(self, calls: list[ToolCall]) -> None:
        tool = self._tool
        assert tool is not None
        self.reply.calls += calls
        self.reply.text += "".join(call.output for call in calls)
        if self._ids:
            self._messages += [
                {"role": "tool", "tool_call_id": name, "content": tool.body(call.output)}
                for name, call in zip(self._ids, calls, strict=True)
            ]
        else:
            self._messages.append(_user("".join(call.output for call in calls)))


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
    program: str
    """The program to run. An unusable call has one that fails with the reason."""
    message: dict[str, Any]
    """The call as it is sent back, with arguments that every server can read."""
    text: str
    """The call as a response shows it."""


def _calls(given: Any) -> list[_Call]:
    return [_call(call) for call in given] if isinstance(given, list) else []


def _call(call: Any) -> _Call:
    call = call if isinstance(call, dict) else {}
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    identifier = str(call.get("id"))
    try:
        program = code_of(name, arguments)
        sent, text = program, f"\n```python\n{program}\n```"
        if isinstance(arguments, str) and well_formed(program) == program:
            return _Call(id=identifier, program=program, message=call, text=text)
    except Unusable as reason:
        program = failing_program(str(reason))
        # A server reads the arguments of earlier calls again, and would refuse the conversation because of these.
        sent = arguments if isinstance(arguments, str) else _dumped(arguments)
        text = f"\n<tool_call>\n{name} {sent}\n</tool_call>"
    function = {
        "name": name if isinstance(name, str) else FUNCTION,
        "arguments": json.dumps({"code": sent}, ensure_ascii=False),
    }
    message = {"id": identifier, "type": "function", "function": function}
    return _Call(id=identifier, program=program, message=message, text=text)


def _dumped(arguments: Any) -> str:
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (ValueError, RecursionError):  # an integer with thousands of digits, or lists in lists in lists
        return "..."
