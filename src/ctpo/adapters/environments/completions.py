"""Conversations that a library runs itself, and in which it asks a client for each completion of the model.

Our engines sample all responses together, so here the client waits for the reply that the engine samples. What the
library asks next is what the environment answers.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from ctpo.errors import UserError
from ctpo.tasks.environment import Called
from ctpo.tasks.task import Problem


class CompletionEnvironment(ABC):
    """One conversation with a library that asks for completions.

    Args:
        name: of the library's environment, for error messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._run: asyncio.Task[Any] | None = None
        self.schemas: list[Mapping[str, Any]] = []

    @abstractmethod
    def _converse(self, problem: Problem) -> Coroutine[Any, Any, Any]:
        """The whole conversation. It awaits `_asked` for each completion, and returns the outcome."""

    @abstractmethod
    def _response(self, reply: str, calls: Sequence[Called], *, cut: bool) -> Any:
        """The model's turn as the library's client returns it; `cut` if it has reached its length limit."""

    @abstractmethod
    def _too_long(self) -> Exception:
        """What the client raises if the model cannot write any more."""

    @abstractmethod
    def _scored(self, outcome: Any) -> float:
        """The reward in what `_converse` returned.

        Raises:
            Unscorable: if the conversation broke off and the model is not to blame.
        """

    @abstractmethod
    def _error(self, outcome: Any) -> str | None:
        """What went wrong in the library, in one line; None if nothing did."""

    async def reset(self, problem: Problem) -> list[dict[str, Any]]:
        """The messages with which the environment first asks for a reply."""
        await self.close()
        self._requests: asyncio.Queue[list[Any]] = asyncio.Queue()
        self._seen: list[Any] = []
        self._run = asyncio.create_task(self._converse(problem))
        messages = await self._next()
        if messages is None:
            why = self._error(self._run.result())
            raise UserError(
                f"{self._name} ends problem {problem.id} before the model's first turn ({why}); correct it"
            )
        return messages

    async def step(self, reply: str) -> tuple[list[dict[str, Any]] | None, float, bool]:
        """What the environment answers, or the conversation's reward if it ends the conversation."""
        return self._outcome(await self._answered(reply, []))

    async def use(self, reply: str, calls: Sequence[Called]) -> tuple[list[str], float, bool]:
        """The results of the calls, or the conversation's reward if the environment ends the conversation."""
        messages, reward, over = self._outcome(await self._answered(reply, calls))
        results = [message["content"] for message in messages or ()]
        if not over and len(results) != len(calls):
            raise UserError(f"{self._name} answers {len(calls)} tool calls with {len(results)} messages")
        return results if not over else [""] * len(calls), reward, over

    async def finish(self, reply: str) -> float:
        """The conversation's reward for a response that was cut short."""
        if self._run is None:
            return 0.0
        if reply and await self._answered(reply, [], cut=True) is None:
            return self._reward()
        if not self._waiting.done():
            self._waiting.set_exception(
                self._too_long()
            )  # the library then ends the conversation and scores it
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
        if not self._waiting.done():  # a time limit of the library may have ended the conversation
            self._waiting.set_result(self._response(reply, calls, cut=cut))
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
                f"{self._name} rewrites what was said before; only conversations that grow are supported"
            )
        self._seen = messages
        # After what the last request had comes the model's own reply.
        return [plain(message) for message in (messages[len(seen) + 1 :] if seen else messages)]

    def _outcome(
        self, messages: list[dict[str, Any]] | None
    ) -> tuple[list[dict[str, Any]] | None, float, bool]:
        return (messages, 0.0, False) if messages is not None else (None, self._reward(), True)

    def _reward(self) -> float:
        assert self._run is not None
        return self._scored(self._run.result())


def plain(message: Any) -> dict[str, Any]:
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
