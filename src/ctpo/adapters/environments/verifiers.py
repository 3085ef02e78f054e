"""Environments of the package `verifiers` (`SingleTurnEnv`, `MultiTurnEnv`, `ToolEnv` and others), taken as they are.

`verifiers` runs a conversation itself and asks a client for each reply of the model. Here the client waits for the
reply that our engine samples. So an environment's own loop, tools, stop conditions and rubric stay in charge.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.tasks.environment import Called, Unscorable
from ctpo.tasks.task import Problem, Task

_MODEL: Final = "ctpo"
_LAST_TURNS: Final = 10_000  # the environment's own limit ends a conversation earlier


def from_verifiers(environment: Any, *, name: str = "verifiers", **settings: Any) -> Task:
    """A task with the problems, the conversations and the rewards of a `verifiers` environment.

    Its training set gives the problems of the split "train", and its evaluation set those of "test". The reward of a
    response is what the rubric gives, at its last turn. Rubrics that compare the responses of a group are refused.

    Args:
        environment: an object of `verifiers.Environment`, for example `verifiers.load_environment("gsm8k")`.
        name: of the task.
        settings: further fields of the `Task`, for example `passing_reward`.

    Raises:
        UserError: if the environment is of another kind, or scores groups of responses.

    Example:
        task = from_verifiers(verifiers.load_environment("wordle"), name="wordle")
    """
    require("ctpo.adapters.environments.verifiers", "verifiers", "verifiers")
    for method in ("run_rollout", "get_dataset", "get_eval_dataset"):
        if not callable(getattr(environment, method, None)):
            raise UserError(
                f"{type(environment).__name__} has no {method}, so it is no environment of verifiers up to 0.3; give a "
                "SingleTurnEnv, MultiTurnEnv or ToolEnv"
            )
    if getattr(environment, "requires_group_rollouts", False):
        raise UserError(
            f"the rubric of {type(environment).__name__} scores groups of responses, which is not supported; give it "
            "reward functions of single responses"
        )
    rows = _Rows(environment)
    return Task(
        **{
            "name": name,
            "problems": rows,
            "environment": lambda: VerifiersEnvironment(environment, rows),
            "chat": True,
            "max_turns": _LAST_TURNS,
            **settings,
        }
    )


class _Rows:
    """The rows of an environment's data sets, as a source of problems."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._sets: dict[str, Any] = {}

    def __call__(self, split: str, count: int, seed: int) -> list[Problem]:
        """The first rows of the data set; `seed` has no effect."""
        number = min(count, len(self._set(split)))
        return [self._problem(f"{split}-{index}", self._set(split)[index]) for index in range(number)]

    def row(self, problem: Problem) -> dict[str, Any]:
        """The row that a problem was made of."""
        split, _, index = problem.id.partition("-")
        return dict(self._set(split)[int(index)])

    def _set(self, split: str) -> Any:
        if split not in self._sets:
            own = self._environment
            self._sets[split] = own.get_dataset() if split == "train" else own.get_eval_dataset()
        return self._sets[split]

    def _problem(self, identifier: str, row: Mapping[str, Any]) -> Problem:
        messages = [_plain(message) for message in row["prompt"]]
        return Problem(prompt=tuple(messages), answer=str(row.get("answer", "")), id=identifier)


class VerifiersEnvironment:
    """One conversation with an environment of `verifiers`."""

    def __init__(self, environment: Any, rows: _Rows) -> None:
        self._environment, self._rows = environment, rows
        self._run: asyncio.Task[Any] | None = None
        self.schemas: list[Mapping[str, Any]] = []

    async def reset(self, problem: Problem) -> list[dict[str, Any]]:
        """The messages with which the environment first asks for a reply."""
        await self.close()
        self._requests: asyncio.Queue[list[Any]] = asyncio.Queue()
        self._seen: list[Any] = []
        self._run = asyncio.create_task(
            self._environment.run_rollout(
                self._rows.row(problem), _client(self._asked), _MODEL, {}, state_columns=["error"]
            )
        )
        messages = await self._next()
        if messages is None:
            raise UserError(
                f"verifiers ends problem {problem.id} before the model's first turn ({self._error()})"
            )
        return messages

    async def step(self, reply: str) -> tuple[list[dict[str, Any]] | None, float, bool]:
        """What the environment answers, or the rubric's reward if it ends the conversation."""
        return self._outcome(await self._answered(reply, []))

    async def use(self, reply: str, calls: Sequence[Called]) -> tuple[list[str], float, bool]:
        """The results of the calls, or the rubric's reward if the environment ends the conversation."""
        messages, reward, over = self._outcome(await self._answered(reply, calls))
        results = [message["content"] for message in messages or ()]
        if not over and len(results) != len(calls):
            raise UserError(
                f"{type(self._environment).__name__} answers {len(calls)} tool calls with {len(results)} messages"
            )
        return results if not over else [""] * len(calls), reward, over

    async def finish(self, reply: str) -> float:
        """The rubric's reward for a response that was cut short."""
        if self._run is None or self._run.done():
            return 0.0
        if reply and await self._answered(reply, [], cut=True) is None:
            return self._reward()
        self._waiting.set_exception(_too_long())  # the environment then ends the conversation and scores it
        await self._run
        return self._reward()

    async def close(self) -> None:
        """Abandon a conversation that has not ended."""
        if self._run is not None and not self._run.done():
            self._run.cancel()
            await asyncio.wait([self._run])
        self._run = None

    async def _asked(self, messages: list[Any], tools: list[Any] | None) -> Any:
        """The client's side: wait for the reply to these messages."""
        self.schemas = [_schema(tool) for tool in tools or ()]
        self._waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait(messages)
        return await self._waiting

    async def _answered(
        self, reply: str, calls: Sequence[Called], *, cut: bool = False
    ) -> list[dict[str, Any]] | None:
        self._waiting.set_result(_response(reply, calls, cut=cut))
        return await self._next()

    async def _next(self) -> list[dict[str, Any]] | None:
        """The messages that are new in the environment's next request; None if the conversation has ended."""
        assert self._run is not None
        request = asyncio.create_task(self._requests.get())
        await asyncio.wait([request, self._run], return_when=asyncio.FIRST_COMPLETED)
        if not request.done():
            request.cancel()
            return None
        messages, seen = request.result(), self._seen
        if seen and messages[: len(seen)] != seen:
            raise UserError(
                f"{type(self._environment).__name__} rewrites what was said before; only conversations that grow are "
                "supported"
            )
        self._seen = messages
        # After what the last request had comes the model's own reply.
        return [_plain(message) for message in (messages[len(seen) + 1 :] if seen else messages)]

    def _outcome(
        self, messages: list[dict[str, Any]] | None
    ) -> tuple[list[dict[str, Any]] | None, float, bool]:
        return (messages, 0.0, False) if messages is not None else (None, self._reward(), True)

    def _reward(self) -> float:
        if self._error() is not None:
            raise Unscorable(str(self._error())[:200])
        assert self._run is not None
        return float(self._run.result()["reward"] or 0.0)

    def _error(self) -> Any:
        """What went wrong in the environment; it raises what is an error of ours or of a function there."""
        assert self._run is not None
        return self._run.result().get("error")


def _client(asked: Callable[[list[Any], list[Any] | None], Any]) -> Any:
    """A client that gets the model's replies from this function."""
    from verifiers.clients import Client

    class Engine(Client):  # type: ignore[misc]
        async def get_response(
            self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any
        ) -> Any:
            return await asked(list(prompt), tools)

        def _unused(self, *_: Any) -> Any:
            raise NotImplementedError  # get_response calls none of these here

        setup_client = to_native_tool = to_native_prompt = get_native_response = _unused
        raise_from_native_response = from_native_response = _unused

        async def close(self) -> None:
            return None

    return Engine(object())


def _response(reply: str, calls: Sequence[Called], *, cut: bool) -> Any:
    from verifiers.types import Response, ResponseMessage, ToolCall

    made = [
        ToolCall(
            id=f"call_{number}",
            name=call.name,
            # An unreadable call has arguments that are no JSON, so that the environment says so in its own words.
            arguments=json.dumps(dict(call.arguments)) if call.error is None else call.error,
        )
        for number, call in enumerate(calls)
    ]
    ending = "length" if cut else "tool_calls" if made else "stop"
    message = ResponseMessage(content=reply, tool_calls=made or None, finish_reason=ending, is_truncated=cut)
    return Response(id="", created=0, model=_MODEL, message=message)


def _too_long() -> Exception:
    from verifiers.errors import OverlongPromptError

    error: Exception = OverlongPromptError("the response has reached its length limit")
    return error


def _plain(message: Any) -> dict[str, Any]:
    """The message as a role and a text."""
    fields = message if isinstance(message, Mapping) else message.model_dump()
    content = fields.get("content")
    if not isinstance(content, str):
        parts = content or []
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
            raise UserError(
                "a message of the environment holds something other than text, which is not supported"
            )
        content = "".join(part["text"] for part in parts)
    return {"role": fields["role"], "content": content}


def _schema(tool: Any) -> dict[str, Any]:
    """The declaration of a tool as chat templates take it."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }
