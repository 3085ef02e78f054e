"""One sampled and judged response to a problem, and the loop that makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.evaluation.metrics import mean_and_error
from ctpo.evaluation.samplers import Response, endpoint_responses, local_responses
from ctpo.rollout import EndpointEngine, ToolCall, ToolRunner, TransformersEngine, VLLMEngine
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task
from ctpo.tasks.guard import on_problem
from ctpo.tasks.task import PARTLY_RIGHT, RIGHT, Judgement, judgements

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "answer", "completion"), str),
    "prompt": (str, list),
    **dict.fromkeys(("found", "verdict", "error"), (str, type(None))),
    **dict.fromkeys(("finished", "too_long"), bool),
    **dict.fromkeys(("sample", "tokens"), int),
    "calls": list,
}
"""The types of what a record of a response holds."""
_LARGEST: Final = 2**53
"""A larger count in a record is damage; floats do not hold it."""


@dataclass(frozen=True, kw_only=True)
class JudgedResponse:
    """One response to one problem, with the task's verdict."""

    problem: Problem
    sample: int
    """Which of the problem's responses this is, counted from 0."""
    text: str
    """The response, tool calls and their outputs included."""
    extracted: str | None
    """The final answer in the response, if the task can extract it and there is one."""
    verdict: str | None
    """"right", "partly right", or the judge's word for why not; None if nothing was judged."""
    finished: bool
    """Whether the model ended the response itself."""
    tokens: int
    """How many tokens the model sampled; the tool's tokens do not count."""
    calls: list[ToolCall]
    too_long: bool
    """Whether the problem left no room in the model's context, so that nothing was sampled."""
    error: str | None
    """Why the request failed, if an endpoint did not answer it."""
    turn_rewards: list[float | None] = field(default_factory=list)
    """What an environment gave each turn; None for a turn that it could not score. Empty without an environment."""
    score: float = 0.0
    """1 if right, 0 if not, and between the two if a part is right."""

    @property
    def reward(self) -> float | None:
        """The sum of the turns' rewards; None if the environment could not score the response."""
        known = [reward for reward in self.turn_rewards if reward is not None]
        return math.fsum(known) if len(known) == len(self.turn_rewards) else None

    @property
    def correct(self) -> bool:
        """Whether the answer is right. A response that could not be sampled is not."""
        return self.verdict == RIGHT

    def record(self) -> dict[str, Any]:
        """The response as one JSON object of a transcript file."""
        return {
            "id": self.problem.id,
            "sample": self.sample,
            "prompt": self.problem.prompt,
            "answer": self.problem.answer,
            "completion": self.text,
            "found": self.extracted,
            "correct": self.correct,
            "verdict": self.verdict,
            **({"score": self.score} if self.verdict == PARTLY_RIGHT else {}),
            "finished": self.finished,
            "tokens": self.tokens,
            "calls": [asdict(call) for call in self.calls],
            **({"turn_rewards": self.turn_rewards} if self.turn_rewards else {}),
            "too_long": self.too_long,
            "error": self.error,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> JudgedResponse:
        """The response that `record` was made of.

        Raises:
            KeyError, TypeError, ValueError: if the object is not such a record.
        """
        for name, kind in _TYPES.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is {record[name]!r}")
        for name in ("sample", "tokens"):
            if isinstance(record[name], bool) or not 0 <= record[name] < _LARGEST:
                raise ValueError(f"{name} is {str(record[name])[:20]}")
        return cls(
            problem=Problem(prompt=record["prompt"], answer=record["answer"], id=record["id"]),
            sample=record["sample"],
            text=record["completion"],
            extracted=record["found"],
            verdict=record["verdict"],
            finished=record["finished"],
            tokens=record["tokens"],
            calls=[ToolCall(**call) for call in record["calls"]],
            too_long=record["too_long"],
            error=record["error"],
            turn_rewards=_rewards(record.get("turn_rewards", [])),
            score=_share(record["score"])
            if record["verdict"] == PARTLY_RIGHT
            else float(record["verdict"] == RIGHT),
        )


def _share(value: Any) -> float:
    """The score in a record.

    Raises:
        TypeError, ValueError: if it is none.
    """
    if not isinstance(value, float) or not 0 < value < 1:
        raise ValueError(f"score is {str(value)[:20]}")
    return value


def _rewards(values: Any) -> list[float | None]:
    """The turn rewards in a record.

    Raises:
        TypeError, ValueError: if they are none.
    """
    if not isinstance(values, list) or any(isinstance(value, bool | str) for value in values):
        raise TypeError(f"turn_rewards is {str(values)[:40]}")
    rewards = [None if value is None else float(value) for value in values]
    if not all(reward is None or math.isfinite(reward) for reward in rewards):
        raise ValueError(f"turn_rewards is {str(values)[:40]}")
    return rewards


def sample_problems(
    engine: TransformersEngine | VLLMEngine | EndpointEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int = 1,
    tools: ToolRunner | None = None,
    seed: int = 0,
    places: Sequence[int] | None = None,
) -> list[JudgedResponse]:
    """`samples` judged responses for each problem, problem by problem.

    Each response draws from random numbers of its own. So an evaluation during training changes nothing about the
    training, two evaluations of the same weights agree, and parts of a set can be evaluated separately.

    Args:
        places: the position of each problem in the whole set, on which its random numbers depend; 0, 1, … by default.

    Raises:
        UserError: if an endpoint answers no request at all, or if no problem fits into the model's context.
    """
    places = range(len(problems)) if places is None else places
    if isinstance(engine, EndpointEngine):
        responses = endpoint_responses(
            engine, task, problems, sampling, samples=samples, tools=tools, seed=seed, places=places
        )
        _check_answering(engine, task, responses, places)
    else:
        responses = local_responses(
            engine, task, problems, sampling, samples=samples, tools=tools, seed=seed, places=places
        )
    pairs = [(problem, sample) for problem in problems for sample in range(samples)]
    return judge(
        task,
        [
            _not_judged(problem, sample, response)
            for (problem, sample), response in zip(pairs, responses, strict=True)
        ],
    )


def reward_figures(responses: Sequence[JudgedResponse]) -> dict[str, float]:
    """The mean of the rewards that environments gave, and its standard error; empty without an environment.

    A response that is not scored counts as 0.
    """
    if not any(response.turn_rewards for response in responses):
        return {}
    mean, error = mean_and_error([response.reward or 0.0 for response in responses])
    return {"reward": mean, "reward_stderr": error}


def graded_figure(responses: Sequence[JudgedResponse]) -> dict[str, bool]:
    """`graded: True` if a response is partly right, so that the mean of scores is no share of right answers."""
    return {"graded": True} if any(each.verdict == PARTLY_RIGHT for each in responses) else {}


def judge(task: Task, responses: Sequence[JudgedResponse]) -> list[JudgedResponse]:
    """The same responses with the verdicts and final answers that the task's check gives now."""
    sampled = [each for each in responses if not each.too_long and each.error is None]
    texts, answers = [each.text for each in sampled], [each.problem.answer for each in sampled]
    names, rewards = [each.problem.id for each in sampled], [each.reward for each in sampled]
    given = iter(judgements(task, texts, answers, names, rewards))
    return [
        replace(each, extracted=None, verdict=None, score=0.0)
        if each.too_long or each.error is not None
        else _judged(each, next(given), _extracted(task, each))
        for each in responses
    ]


def _judged(response: JudgedResponse, judgement: Judgement, extracted: str | None) -> JudgedResponse:
    return replace(response, extracted=extracted, verdict=judgement.verdict, score=float(judgement.score))


def _extracted(task: Task, response: JudgedResponse) -> str | None:
    if task.extract is None:
        return None
    with on_problem(response.problem.id):
        return task.extract(response.text)


def _check_answering(
    engine: EndpointEngine, task: Task, responses: Sequence[Response], places: Sequence[int]
) -> None:
    if not all(response.error for response in responses):
        return
    # A 4xx is the server's opinion of the request itself: an option that it lacks, or a context that is too short.
    refused = str(responses[0].error).startswith("HTTP 4")
    raise UserError(
        f"endpoint {engine.endpoint.url} {'refuses every request' if refused else 'has stopped answering'} at "
        f"problem {places[0] + 1} of task {task.name!r} ({responses[0].error}); the same command with --output "
        "continues once it answers"
    )


def _not_judged(problem: Problem, sample: int, response: Response) -> JudgedResponse:
    return JudgedResponse(
        problem=problem,
        sample=sample,
        text=response.text,
        extracted=None,
        verdict=None,
        finished=response.finished,
        tokens=response.tokens,
        calls=response.calls,
        too_long=response.too_long,
        error=response.error,
        turn_rewards=[None if math.isnan(reward) else reward for reward in response.turn_rewards],
    )
