"""Environments: the other side of a conversation of several turns.

An environment gives a problem's first messages, reads each reply of the model, and answers with further messages and a
reward. One object holds one conversation at a time. `ctpo.rollout.environments` runs many of them together.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from ctpo.errors import UserError, well_formed
from ctpo.tasks.functions import FunctionTool
from ctpo.tasks.prompts import Prompt
from ctpo.tasks.task import Problem

Messages = str | Sequence[Mapping[str, Any]] | None
"""What an environment says: messages with `role` and `content`, the text of one user message, or None for nothing."""
_ROLES: Final = ("system", "user", "assistant", "tool")
_SHOWN: Final = 160
"""Characters of a user's value or exception that an error message shows."""


class Environment(Protocol):
    """One conversation at a time, with one response of the model.

    Both methods may be coroutines. An object is used again for other problems, so `reset` must clear all that it
    remembers. The methods of one object are never called at the same time, and always in the same thread.

    An environment may have more methods. `finish(reply) -> float | None` is called in place of `step` if the
    response ends before the environment ends it: at its length limit, or at the task's `max_turns`. `reply` is what
    the model has written of the turn. What it returns counts as the turn's reward. `tools() -> list` gives the
    functions that the model may call in the conversation, each typed and with a docstring. `answers_at_once = True`
    says that no method takes longer than a decoding step. Responses are then answered in the step in which they ask.
    Otherwise other responses are decoded meanwhile, which costs steps.

    Example:
        class Guess:
            def reset(self, problem):
                self.number = int(problem.answer)

            def step(self, reply):
                guess = int(reply) if reply.strip().isdecimal() else 0
                if guess == self.number:
                    return None, 1.0, True
                return "higher" if guess < self.number else "lower", 0.0, False

        task = Task(name="guess", problems=problems, environment=Guess)
    """

    def reset(self, problem: Problem) -> Messages | Awaitable[Messages]:
        """Begin a conversation about this problem.

        Returns:
            The messages that the model continues. None stands for the problem's prompt.
        """

    def step(
        self, reply: str
    ) -> tuple[Messages, float | None, bool] | Awaitable[tuple[Messages, float | None, bool]]:
        """Read what the model has written, and answer.

        Args:
            reply: the text of the model's turn, without special tokens, tool calls that were answered, and thinking.

        Returns:
            Further messages; the reward of the turn, where None is 0; and whether the conversation is over. Then the
            messages are not shown to the model.
        """


class Called(Protocol):
    """A tool call that a model has written (`ctpo.rollout.calls.Call`)."""

    @property
    def name(self) -> str:
        """The tool."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """By the names of the tool's parameters."""

    @property
    def error(self) -> str | None:
        """Why the call cannot be read, for the model to read; None if it can."""


class EnvironmentWithTools(Environment, Protocol):
    """An environment whose tools the model may call. A turn with calls goes to `use`, any other to `step`."""

    @property
    def schemas(self) -> Sequence[Mapping[str, Any]]:
        """The declarations of the tools, as chat templates take them; the same for every problem."""

    def use(
        self, reply: str, calls: Sequence[Called]
    ) -> tuple[Sequence[str], float | None, bool] | Awaitable[tuple[Sequence[str], float | None, bool]]:
        """Run the calls of one turn, in which the model has written `reply` before them.

        Returns:
            The result of each call, in order; the reward of the turn; and whether the conversation is over.
        """


@dataclass(frozen=True)
class DeclaredTool(FunctionTool):
    """A tool that an environment runs itself, of which only the declaration is known here."""

    declaration: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", self.declaration)

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> DeclaredTool:
        """The tool with this declaration, as chat templates take it.

        Raises:
            UserError: if it is none.
        """
        try:
            name = schema["function"]["name"]
        except (KeyError, TypeError):
            raise UserError(
                f"{_shown(schema)} is no declaration of a tool; use the form of transformers' get_json_schema"
            ) from None
        return cls(_nothing, name=name, declaration=schema)


def _nothing() -> None:
    """Stands for a function that the environment runs."""


class Unscorable(Exception):
    """Raised by an environment that cannot go on and is not to blame, such as one whose server is gone.

    The response then ends, and is not scored. Any other error ends the run.
    """


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an environment answered to one reply."""

    messages: list[dict[str, Any]]
    reward: float
    done: bool


def conversation(value: Any, name: str) -> list[dict[str, Any]]:
    """The messages that an environment returned, as a list; text becomes a user message.

    Args:
        name: of the environment's method, for the error message.

    Raises:
        UserError: if they are no messages.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": well_formed(value)}]
    messages = list(value) if isinstance(value, list | tuple) else [value]
    for message in messages:
        usable = isinstance(message, Mapping) and message.get("role") in _ROLES
        if not usable or not isinstance(message.get("content"), str):
            raise UserError(
                f"{name} returns {_shown(message)} as a message; return text, or a list of messages with role "
                f"({', '.join(_ROLES)}) and content (text)"
            )
    return [{**message, "content": well_formed(message["content"])} for message in messages]


def opening(messages: Sequence[Mapping[str, Any]], prompt: Prompt) -> Prompt:
    """The prompt of a conversation that begins with these messages; the problem's own prompt if there are none."""
    if not messages:
        return prompt
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return tuple(messages)


def step_of(value: Any, name: str) -> Step:
    """What `step` returned.

    Raises:
        UserError: if it is not messages, a finite reward and whether the conversation is over.
    """
    if not isinstance(value, tuple) or len(value) != 3:
        raise UserError(f"{name} returns {_shown(value)}; return three values: messages, reward, done")
    messages, reward, done = value
    return Step(
        messages=conversation(messages, name), reward=reward_of(reward, name), done=_truth(done, name)
    )


def use_of(value: Any, calls: int, name: str) -> Step:
    """What `use` returned, with its results as the messages.

    Raises:
        UserError: if it is not one text per call, a finite reward and whether the conversation is over.
    """
    if not isinstance(value, tuple) or len(value) != 3 or isinstance(value[0], str):
        raise UserError(f"{name} returns {_shown(value)}; return three values: results, reward, done")
    results, reward, done = list(value[0]), value[1], value[2]
    if len(results) != calls or not all(isinstance(result, str) for result in results):
        raise UserError(f"{name} returns {_shown(results)} for {calls} calls; return one text per call")
    messages = [{"role": "tool", "content": well_formed(result)} for result in results]
    return Step(messages=messages, reward=reward_of(reward, name), done=_truth(done, name))


def reward_of(value: Any, name: str) -> float:
    """A turn's reward as a float; None is 0.

    Raises:
        UserError: if it is not a finite number.
    """
    try:
        number = 0.0 if value is None else float("text" if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name} returns the reward {_shown(value)}; return a finite number, or None for 0")
    return number


def _truth(value: Any, name: str) -> bool:
    if isinstance(value, str | bytes) or value is None:
        raise UserError(f"{name} returns done={_shown(value)}; return True or False")
    return bool(value)


def check_environment(environment: Any) -> None:
    """Check that an object that a factory has made has the methods of an environment.

    Raises:
        UserError: if it has not.
    """
    for method in ("reset", "step"):
        if not callable(getattr(environment, method, None)):
            raise UserError(
                f"environment {type(environment).__name__} has no method {method!r}; give reset(problem) and "
                "step(reply), or use an adapter of ctpo.adapters.environments"
            )


def failure(environment: Any, method: str, problem: Problem, error: BaseException) -> UserError:
    """The error of one line for what a method of an environment raised."""
    place = _place(environment, error)
    return UserError(
        f"environment {type(environment).__name__}{place}: {method} raises {type(error).__name__}: "
        f"{' '.join(str(error).split())[:_SHOWN]} (problem {problem.id}); correct it"
    )


def made_wrong(factory: Any, error: BaseException) -> UserError:
    """The error of one line for what an environment's factory raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(
        f"environment {getattr(factory, '__name__', factory)} ({frame.filename} line {frame.lineno}) cannot be made: "
        f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN]}; correct it"
    )


def method_name(environment: Any, method: str, problem: Problem) -> str:
    """How an error message names a method that returned something unusable."""
    file = _source(environment)
    return f"environment {type(environment).__name__}{f' ({file})' if file else ''}: {method} of problem {problem.id}"


def _place(environment: Any, error: BaseException) -> str:
    """The last line of the environment's own file that the error went through, or else the last line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = _source(environment)
    mine = [frame for frame in frames if frame.filename == own] or frames[-1:]
    return f" ({Path(mine[-1].filename)} line {mine[-1].lineno})" if mine else ""


def _source(environment: Any) -> str | None:
    try:
        return inspect.getsourcefile(type(environment))
    except (TypeError, OSError):
        return None


def _shown(value: Any) -> str:
    return repr(value)[:_SHOWN]


EnvironmentFactory = Callable[[], Environment]
"""Makes one environment. A class without required arguments is one."""
