"""One sampled and judged response to a problem, and the loop that makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ctpo.errors import UserError
from ctpo.evaluation.samplers import Response, endpoint_responses, local_responses
from ctpo.rollout import EndpointEngine, ToolCall, ToolRunner, TransformersEngine, VLLMEngine
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task
from ctpo.tasks.task import verdict


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
    """"right", or the judge's word for why not; None if nothing was judged."""
    finished: bool
    """Whether the model ended the response itself."""
    tokens: int
    """How many tokens the model sampled; the tool's tokens do not count."""
    calls: list[ToolCall]
    too_long: bool
    """Whether the problem left no room in the model's context, so that nothing was sampled."""
    error: str | None
    """Why the request failed, if an endpoint did not answer it."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right. A response that could not be sampled is not."""
        return self.verdict == "right"

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
            "finished": self.finished,
            "tokens": self.tokens,
            "calls": [asdict(call) for call in self.calls],
            "too_long": self.too_long,
            "error": self.error,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> JudgedResponse:
        """The response that `record` was made of.

        Raises:
            KeyError, TypeError: if the object is not such a record.
        """
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
        )


def sample_problems(
    engine: TransformersEngine | VLLMEngine | EndpointEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int = 1,
    tools: ToolRunner | None = None,
    seed: int = 0,
    first: int = 0,
) -> list[JudgedResponse]:
    """`samples` judged responses for each problem, problem by problem.

    Each response draws from random numbers of its own. So an evaluation during training changes nothing about the
    training, two evaluations of the same weights agree, and parts of a set can be evaluated separately.

    Args:
        first: the position of the first of these problems in the whole set.

    Raises:
        UserError: if an endpoint answers no request at all, or if no problem fits into the model's context.
    """
    if isinstance(engine, EndpointEngine):
        responses = endpoint_responses(
            engine, task, problems, sampling, samples=samples, tools=tools, seed=seed + first * samples
        )
        _check_answering(engine, task, responses, first)
    else:
        responses = local_responses(
            engine, task, problems, sampling, samples=samples, tools=tools, seed=seed, first=first
        )
    pairs = [(problem, sample) for problem in problems for sample in range(samples)]
    return [
        _judge(task, problem, sample, response)
        for (problem, sample), response in zip(pairs, responses, strict=True)
    ]


def _check_answering(engine: EndpointEngine, task: Task, responses: Sequence[Response], first: int) -> None:
    if not all(response.error for response in responses):
        return
    # A 4xx is the server's opinion of the request itself: an option that it lacks, or a context that is too short.
    refused = str(responses[0].error).startswith("HTTP 4")
    raise UserError(
        f"endpoint {engine.endpoint.url} {'refuses every request' if refused else 'has stopped answering'} at "
        f"problem {first + 1} of task {task.name!r} ({responses[0].error}); the same command with --output "
        "continues once it answers"
    )


def _judge(task: Task, problem: Problem, sample: int, response: Response) -> JudgedResponse:
    sampled = not response.too_long and response.error is None
    return JudgedResponse(
        problem=problem,
        sample=sample,
        text=response.text,
        extracted=task.extract(response.text) if sampled and task.extract is not None else None,
        verdict=verdict(task, response.text, problem.answer) if sampled else None,
        finished=response.finished,
        tokens=response.tokens,
        calls=response.calls,
        too_long=response.too_long,
        error=response.error,
    )
