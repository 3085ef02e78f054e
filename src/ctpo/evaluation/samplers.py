"""Responses to problems, from a model in this process or from one behind an endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ctpo.rollout import EndpointEngine, Rollout, ToolCall, ToolRunner, TransformersEngine, VLLMEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.noise import row_uniforms
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task

_BEYOND_CONTEXT = re.compile(r"HTTP 4\d\d: .*\bcontext\b", re.IGNORECASE)
"""How vLLM, llama.cpp and OpenAI refuse a request that is longer than the model's context."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response, as evaluations look at it."""

    text: str = ""
    finished: bool = False
    tokens: int = 0
    """The model's own."""
    calls: list[ToolCall] = field(default_factory=list)
    too_long: bool = False
    """Whether the problem left no room in the model's context, so that nothing was sampled."""
    error: str | None = None
    """Why a request failed."""


def local_responses(
    engine: TransformersEngine | VLLMEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int,
    tools: ToolRunner | None,
    seed: int,
    first: int,
) -> list[Response]:
    """`samples` responses a problem, problem by problem; the first problem is number `first` of the task's."""
    prompts = [encode_prompt(engine.tokenizer, task, problem.prompt) for problem in problems]
    fitting = [engine.fits(prompt, sampling) for prompt in prompts]
    if not any(fitting):
        fitting = [True] * len(prompts)  # the engine's own message says what is wrong
    asked = [prompt for prompt, fits in zip(prompts, fitting, strict=True) if fits for _ in range(samples)]
    numbers = [(first + i) * samples + j for i, fits in enumerate(fitting) if fits for j in range(samples)]
    uniforms = row_uniforms(numbers, sampling.max_new_tokens, seed=seed)
    rollouts = iter(engine.generate(asked, sampling, tools=tools, uniforms=uniforms))
    return [
        _response(engine, next(rollouts)) if fits else Response(too_long=True)
        for fits in fitting
        for _ in range(samples)
    ]


def endpoint_responses(
    engine: EndpointEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int,
    tools: ToolRunner | None,
    seed: int,
) -> list[Response]:
    """The same from an endpoint, each response with a seed of its own, counted up from `seed`."""
    prompts = [problem.prompt for problem in problems for _ in range(samples)]
    seeds = [(seed + i) % 2**31 for i in range(len(prompts))]
    replies = engine.respond(task, prompts, sampling, tools=tools, seeds=seeds)
    beyond = [reply.error is not None and _BEYOND_CONTEXT.match(reply.error) is not None for reply in replies]
    if all(beyond):
        beyond = [False] * len(replies)  # that is the request's fault, and the server's own message says so
    return [
        Response(
            text=reply.text,
            finished=reply.finished,
            tokens=reply.tokens,
            calls=reply.calls,
            too_long=full and not reply.text,  # else it filled the context on its way, and is cut there
            error=None if full else reply.error,
        )
        for reply, full in zip(replies, beyond, strict=True)
    ]


def _response(engine: TransformersEngine | VLLMEngine, rollout: Rollout) -> Response:
    text: str = engine.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
    return Response(
        text=text, finished=rollout.finished, tokens=sum(rollout.response_mask), calls=rollout.calls
    )
