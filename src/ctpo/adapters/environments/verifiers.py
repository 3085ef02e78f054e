"""Environments of the package `verifiers` (`SingleTurnEnv`, `MultiTurnEnv`, `ToolEnv` and others), taken as they are.

`verifiers` runs a conversation itself and asks a client for each reply of the model. Here the client waits for the
reply that our engine samples. So an environment's own loop, tools, stop conditions and rubric stay in charge.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from ctpo.adapters.environments.completions import CompletionEnvironment, plain
from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.tasks.columns import difficulty_of
from ctpo.tasks.environment import Called, Unscorable
from ctpo.tasks.task import Problem, RatedSource, Task

_MODEL: Final = "ctpo"
_LAST_TURNS: Final = 10_000  # the environment's own limit ends a conversation earlier


def from_verifiers(
    environment: Any, *, name: str = "verifiers", difficulty: str | None = None, **settings: Any
) -> Task:
    """A task with the problems, the conversations and the rewards of `verifiers`.

    Up to 0.3 that is an environment. Its training set gives the problems of the split "train", and its evaluation set
    those of "test". From 0.4 on it is a taskset or an environment with one; an eighth of its prompts is the split
    "test". The reward of a response comes at its last turn. Rubrics that compare the responses of a group are refused.

    Args:
        environment: an object of `verifiers.Environment`, for example `verifiers.load_environment("gsm8k")`, or of
            `verifiers.v1.Taskset` or `verifiers.v1.Env`.
        name: of the task.
        difficulty: the column of its data with the problems' difficulty, for a curriculum, such as "pass_rate" or
            "info.level"; None for "difficulty", which may be missing. In a recipe: `columns: {difficulty: NAME}`.
        settings: further fields of the `Task`, for example `passing_reward`.

    Raises:
        UserError: if the environment is of another kind, scores groups of responses, or starts other programs than
            its tools.

    Example:
        task = from_verifiers(verifiers.load_environment("wordle"), name="wordle")
    """
    require("ctpo.adapters.environments.verifiers", "verifiers", "verifiers")
    problems, factory = _generation(environment)(environment)
    return Task(
        **{
            "name": name,
            "problems": problems if difficulty is None else problems.rated_by(difficulty),
            "environment": factory,
            "chat": True,
            "max_turns": _LAST_TURNS,
            **settings,
        }
    )


def _generation(
    environment: Any,
) -> Callable[[Any], tuple[RatedSource, Callable[[], CompletionEnvironment]]]:
    """What reads environments of this generation of `verifiers`."""
    if not any(base.__module__.startswith("verifiers.v1.") for base in type(environment).__mro__):
        return _source_of
    try:
        from ctpo.adapters.environments.verifiers_v1 import source_of
    except ImportError as error:
        raise UserError(
            f"{type(environment).__name__} needs verifiers 0.4 ({error}); upgrade verifiers"
        ) from None
    return source_of


def _source_of(environment: Any) -> tuple[RatedSource, Callable[[], CompletionEnvironment]]:
    """The problems and the environments of an environment up to 0.3."""
    for method in ("run_rollout", "get_dataset", "get_eval_dataset"):
        if not callable(getattr(environment, method, None)):
            raise UserError(
                f"{type(environment).__name__} has no {method}, so it is no environment of verifiers; give a "
                "SingleTurnEnv, MultiTurnEnv or ToolEnv, or from verifiers 0.4 on a Taskset or an Env"
            )
    if getattr(environment, "requires_group_rollouts", False):
        raise UserError(
            f"the rubric of {type(environment).__name__} scores groups of responses, which is not supported; give it "
            "reward functions of single responses"
        )
    rows = _Rows(environment)
    return rows, lambda: VerifiersEnvironment(environment, rows)


class _Rows:
    """The rows of an environment's data sets, as a source of problems."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._sets: dict[str, Any] = {}
        self._difficulty = "difficulty"

    def __call__(self, split: str, count: int, seed: int) -> list[Problem]:
        """The first rows of the data set; `seed` has no effect."""
        number = min(count, len(self._set(split)))
        return [self._problem(f"{split}-{index}", self._set(split)[index]) for index in range(number)]

    def row(self, problem: Problem) -> dict[str, Any]:
        """The row that a problem was made of."""
        split, _, index = problem.id.partition("-")
        return dict(self._set(split)[int(index)])

    def rated_by(self, column: str) -> _Rows:
        """The same problems with the difficulty in this column."""
        other = copy.copy(self)
        other._difficulty = column
        return other

    def _set(self, split: str) -> Any:
        if split not in self._sets:
            own = self._environment
            self._sets[split] = own.get_dataset() if split == "train" else own.get_eval_dataset()
        return self._sets[split]

    def _problem(self, identifier: str, row: Mapping[str, Any]) -> Problem:
        messages = [plain(message) for message in row["prompt"]]
        info = row.get("info")
        known = {**row, "info": json.loads(info)} if isinstance(info, str) else row  # as verifiers reads it
        return Problem(
            prompt=tuple(messages),
            answer=str(row.get("answer", "")),
            id=identifier,
            difficulty=difficulty_of(known, self._difficulty),
        )


class VerifiersEnvironment(CompletionEnvironment):
    """One conversation with an environment of `verifiers` up to 0.3."""

    def __init__(self, environment: Any, rows: _Rows) -> None:
        super().__init__(type(environment).__name__)
        self._environment, self._rows = environment, rows

    def _converse(self, problem: Problem) -> Coroutine[Any, Any, Any]:
        row, client = self._rows.row(problem), _client(self._asked)
        run: Coroutine[Any, Any, Any] = self._environment.run_rollout(
            row, client, _MODEL, {}, state_columns=["error"]
        )
        return run

    def _response(self, reply: str, calls: Sequence[Called], *, cut: bool) -> Any:
        return _response(reply, calls, cut=cut)

    def _too_long(self) -> Exception:
        from verifiers.errors import OverlongPromptError

        error: Exception = OverlongPromptError("the response has reached its length limit")
        return error

    def _scored(self, outcome: Any) -> float:
        if (error := self._error(outcome)) is not None:
            raise Unscorable(error)
        return float(outcome["reward"] or 0.0)

    def _error(self, outcome: Any) -> str | None:
        error = outcome.get("error")
        return None if error is None else str(error)[:200]


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
