"""Responses to problems, from an engine of ours or from a model behind an endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ctpo.errors import UserError
from ctpo.rollout import EndpointEngine, Rollout, ToolCall, ToolRunner, TransformersEngine, VLLMEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.environments import open_environments
from ctpo.rollout.lengths import LengthLimit
from ctpo.rollout.noise import row_uniforms
from ctpo.rollout.remote.playing import Playing
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task
from ctpo.tasks.environment import opening
from ctpo.tasks.prompts import prompt_text

_BEYOND_CONTEXT = re.compile(r"HTTP 4\d\d: .*\bcontext\b", re.IGNORECASE)
"""The answers of vLLM, llama.cpp and OpenAI to a request that is longer than the model's context."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """One response as text, with what an evaluation counts."""

    text: str = ""
    finished: bool = False
    tokens: int = 0
    """How many tokens the model sampled."""
    calls: list[ToolCall] = field(default_factory=list)
    turn_rewards: list[float] = field(default_factory=list)
    """What the environment gave each turn; NaN for one that it could not score."""
    too_long: bool = False
    """Whether the problem left no room in the model's context, so that nothing was sampled."""
    error: str | None = None
    """Why the request failed, if it did."""


def local_responses(
    engine: TransformersEngine | VLLMEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int,
    tools: ToolRunner | None,
    seed: int,
    places: Sequence[int],
) -> list[Response]:
    """`samples` responses for each problem, problem by problem.

    Args:
        places: the position of each problem in the whole set; random numbers depend on it.
    """
    with open_environments(task, tools) as environments:
        if environments is None:
            prompts = [each for each in _encoded(engine, task, problems, sampling) for _ in range(samples)]
        else:
            repeated = [problem for problem in problems for _ in range(samples)]
            prompts = environments.open(engine.tokenizer, repeated, engine.room(sampling))
        numbers = [place * samples + j for place in places for j in range(samples)]
        uniforms = row_uniforms(
            [number for number, prompt in zip(numbers, prompts, strict=True) if prompt is not None],
            sampling.max_new_tokens,
            seed=seed,
        )
        rollouts = engine.generate(
            [prompt for prompt in prompts if prompt is not None],
            sampling,
            partner=tools if environments is None else environments,
            uniforms=uniforms,
        )
        if environments is not None:
            environments.finish(rollouts)
    sampled = iter(rollouts)
    return [
        Response(too_long=True) if prompt is None else _response(engine, next(sampled)) for prompt in prompts
    ]


def _encoded(
    engine: TransformersEngine | VLLMEngine, task: Task, problems: Sequence[Problem], sampling: Sampling
) -> list[list[int] | None]:
    """The token ids of each prompt; None for one that leaves no room in the model's context.

    Raises:
        UserError: if none leaves room, or the longest response alone fills the context.
    """
    room = engine.room(sampling)
    if room is None:
        return [encode_prompt(engine.tokenizer, task, problem.prompt) for problem in problems]
    within = LengthLimit(engine.tokenizer, task, room)
    prompts = [within.ids(problem.prompt) for problem in problems]
    if problems and all(prompt is None for prompt in prompts):
        if room < 1:
            raise UserError(
                f"a response of {sampling.max_new_tokens} tokens exceeds the model's context of "
                f"{room + sampling.max_new_tokens}; lower the longest response"
            )
        shortest = min(problems, key=lambda problem: len(prompt_text(problem.prompt)))
        raise UserError(
            f"no prompt of task {task.name!r} leaves room in the model's context: problem {shortest.id}, the shortest, "
            f"has {len(prompt_text(shortest.prompt)):,} characters, and {room} tokens are left beside "
            f"{sampling.max_new_tokens} of the response; shorten the prompts or lower the longest response"
        )
    return prompts


def endpoint_responses(
    engine: EndpointEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int,
    tools: ToolRunner | None,
    seed: int,
    places: Sequence[int],
) -> list[Response]:
    """`samples` responses for each problem from an endpoint, problem by problem.

    Args:
        seed: of the first response to the problem at place 0; each further response has the next number as its seed.
        places: the position of each problem in the whole set.
    """
    repeated = [problem for problem in problems for _ in range(samples)]
    prompts = [problem.prompt for problem in repeated]
    seeds = [(seed + place * samples + j) % 2**31 for place in places for j in range(samples)]
    with open_environments(task, tools) as environments:
        playing = None
        if environments is not None:
            openings = environments.reset(repeated)
            prompts = [opening(messages, prompt) for messages, prompt in zip(openings, prompts, strict=True)]
            playing = Playing(environments, task)
        replies = engine.respond(task, prompts, sampling, tools=tools, playing=playing, seeds=seeds)
    beyond = [reply.error is not None and _BEYOND_CONTEXT.match(reply.error) is not None for reply in replies]
    if all(beyond):
        beyond = [False] * len(replies)  # then the request is at fault, and the server's message says why
    return [
        Response(
            text=reply.text,
            finished=reply.finished,
            tokens=reply.tokens,
            calls=reply.calls,
            turn_rewards=reply.turn_rewards,
            too_long=full and not reply.text,  # with text, the response filled the context and ends there
            error=None if full else reply.error,
        )
        for reply, full in zip(replies, beyond, strict=True)
    ]


def _response(engine: TransformersEngine | VLLMEngine, rollout: Rollout) -> Response:
    text: str = engine.tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
    return Response(
        text=text,
        finished=rollout.finished,
        tokens=sum(rollout.response_mask),
        calls=rollout.calls,
        turn_rewards=[reward for _, reward in rollout.turn_rewards],
    )
