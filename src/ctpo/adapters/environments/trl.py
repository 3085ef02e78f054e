"""TRL's environments: what its GRPOTrainer takes as `environment_factory`, taken as it is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ctpo.errors import UserError
from ctpo.tasks.environment import Called
from ctpo.tasks.functions import FunctionTool
from ctpo.tasks.prompts import Prompt
from ctpo.tasks.task import Problem


def from_trl(factory: Callable[[], Any]) -> Callable[[], TRLEnvironment]:
    """A factory for `Task(environment=...)`, from what TRL takes as `environment_factory`.

    TRL's environment is a class with a `reset`, whose other public methods are tools that the model may call. A turn
    without a tool call ends the conversation. The reward is what `get_reward` returns then. An environment without
    `get_reward` gives 0, and the task needs a `reward`.

    `reset` is called with the problem's fields (prompt, answer, id) as keywords. The text that it returns is appended
    to the prompt, as in TRL.

    Args:
        factory: a class, or a function that makes an environment.

    Example:
        task = Task(name="echo", problems=problems, environment=from_trl(EchoToolEnv), chat=True)
    """
    return lambda: TRLEnvironment(factory())


class TRLEnvironment:
    """One of TRL's environments, as an environment of a task.

    Raises:
        UserError: if it has no `reset`, or a method that a model cannot call.
    """

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        # Looked up on the class, as TRL does: on the object, properties would be evaluated.
        names = [name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)]
        if "reset" not in names:
            raise UserError(
                f"environment {type(environment).__name__} has no reset(**columns), which TRL needs too"
            )
        self._scores = "get_reward" in names
        public = [name for name in names if name not in ("reset", "get_reward") and not name.startswith("_")]
        self._tools = {name: getattr(environment, name) for name in public}
        self.schemas: list[Mapping[str, Any]] = [FunctionTool(each).schema for each in self._tools.values()]

    def reset(self, problem: Problem) -> Any:
        """The prompt with the environment's text at its end. None, which stands for the prompt, if there is no text."""
        return _then(
            self._environment.reset(**problem.columns()), lambda text: self._opening(problem.prompt, text)
        )

    def use(self, reply: str, calls: Sequence[Called]) -> Any:
        """The results of the calls. As in TRL, an error is a result too, and only coroutines run at the same time."""
        values = [self._call(call) for call in calls]
        if any(inspect.isawaitable(value) for value in values):
            return _gathered(values)
        return [str(value) for value in values], 0.0, False

    def step(self, reply: str) -> Any:
        """The end of the conversation, and its reward."""
        return _then(self.finish(reply), lambda reward: (None, reward, True))

    def finish(self, reply: str) -> Any:
        """The reward of a conversation that has ended."""
        return self._environment.get_reward() if self._scores else 0.0

    def _opening(self, prompt: Prompt, text: Any) -> Any:
        if text is None:
            return None
        if not isinstance(text, str):
            raise UserError(
                f"environment {type(self._environment).__name__}: reset returns {type(text).__name__}; return text or "
                "None, because images are not understood here"
            )
        if isinstance(prompt, str):
            return prompt + text
        return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + text}]

    def _call(self, call: Called) -> Any:
        """What the tool returns: a result, or an awaitable of one."""
        try:
            if call.error is not None:
                raise ValueError(call.error)
            if call.name not in self._tools:
                raise ValueError(f"Tool {call.name} not found.")
            return self._tools[call.name](**call.arguments)
        except Exception as error:
            return {"error": str(error)}


def _then(value: Any, change: Callable[[Any], Any]) -> Any:
    """The changed value, or an awaitable of it if the value is one."""

    async def later() -> Any:
        return change(await value)

    return later() if inspect.isawaitable(value) else change(value)


async def _gathered(values: Sequence[Any]) -> tuple[list[str], float, bool]:
    async def result(value: Any) -> str:
        try:
            return str(await value if inspect.isawaitable(value) else value)
        except Exception as error:
            return str({"error": str(error)})

    return list(await asyncio.gather(*map(result, values))), 0.0, False
