"""Several responses to each problem, saved as they come, so that an interrupted evaluation can continue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctpo.evaluation.judged import JudgedResponse, graded_figure, reward_figures, sample_problems
from ctpo.evaluation.metrics import majority, mean_and_error, pass_at_k, reported_ks
from ctpo.evaluation.stored import align, complete_groups, write_responses
from ctpo.evaluation.votes import votes
from ctpo.rollout import EndpointEngine, ToolRunner, TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.runs.atomic import append_json_lines
from ctpo.tasks import Problem, Task


def sample_task(
    engine: TransformersEngine | EndpointEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int = 1,
    rows_at_once: int = 256,
    tools: ToolRunner | None = None,
    seed: int = 0,
    saved: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[JudgedResponse]:
    """`samples` judged responses for each problem, problem by problem.

    Problems are sampled in blocks, and a block is saved when it is complete. Each response draws from random numbers
    of its own, so an evaluation that was interrupted and continued gives what an undisturbed one gives.

    Args:
        rows_at_once: about how many responses make one block; at least the responses to one problem do.
        saved: a JSON Lines file of responses. Problems whose responses it holds are not sampled again, except those of
            which a request failed. Whether the responses still hold is not checked here (`ctpo.evaluation.stored`).
        progress: called with the number of problems that are done.

    Raises:
        UserError: if an endpoint has stopped answering at all.
    """
    held = [] if saved is None else complete_groups(saved, samples)
    groups = align(held, problems).groups
    missing = [i for i, group in enumerate(groups) if group is None or any(each.error for each in group)]
    if saved is not None and missing:
        write_responses(saved, groups)  # a file of our own, without a last line that is cut short
    size = max(1, rows_at_once // samples)
    for start in range(0, len(missing), size):
        progress(len(problems) - len(missing) + start)
        places = missing[start : start + size]
        block = [problems[place] for place in places]
        responses = sample_problems(
            engine, task, block, sampling, samples=samples, tools=tools, seed=seed, places=places
        )
        if saved is not None:
            append_json_lines(saved, [response.record() for response in responses])
        for i, place in enumerate(places):
            groups[place] = responses[i * samples : (i + 1) * samples]
    if saved is not None and missing:
        write_responses(saved, groups)  # in the order of the problems
    progress(len(problems))
    return [response for group in groups if group is not None for response in group]


def summarise(task: Task, responses: Sequence[JudgedResponse], samples: int) -> dict[str, Any]:
    """The figures of one task: means over problems, each with a standard error clustered by problem.

    Args:
        task: the task, whose check says which answers are the same.
        responses: problem by problem, `samples` for each.
    """
    groups = [responses[i : i + samples] for i in range(0, len(responses), samples)]
    right = [sum(response.correct for response in group) for group in groups]
    average, error = mean_and_error([sum(response.score for response in group) / samples for group in groups])
    figures: dict[str, Any] = {
        "pass@1": average,  # the same as avg@k; readers look for either
        f"avg@{samples}": average,
        "stderr": error,
        "problems": len(groups),
        "samples": samples,
    }
    for k in reported_ks(samples)[1:]:
        figures[f"pass@{k}"], figures[f"pass@{k}_stderr"] = mean_and_error(
            [pass_at_k(samples, c, k) for c in right]
        )
    if samples > 1:
        winners = [
            majority([r.extracted for r in group], [r.correct for r in group], cast)
            for group, cast in zip(groups, votes(task, groups), strict=True)
        ]
        identical = sum(len({r.text for r in group}) == 1 for group in groups)
        figures["identical"] = identical / len(groups)
        figures[f"majority@{samples}"], figures["majority_stderr"] = mean_and_error(winners)
    tokens, tokens_error = mean_and_error([sum(r.tokens for r in group) / samples for group in groups])
    n = len(responses)
    return {
        **figures,
        **graded_figure(responses),
        **reward_figures(responses),
        "tool_use": sum(bool(response.calls) for response in responses) / n,
        "tool_calls": sum(len(response.calls) for response in responses) / n,
        "tool_failures": sum(call.status != "ok" for response in responses for call in response.calls),
        "tokens": tokens,
        "tokens_stderr": tokens_error,
        "finished": sum(response.finished for response in responses) / n,
        "answered": sum(response.extracted is not None for response in responses) / n,
        "too_long": len({response.problem.id for response in responses if response.too_long}),
        "failed_requests": sum(bool(response.error) for response in responses),
        "verdicts": dict(Counter(r.verdict for r in responses if r.verdict).most_common()),
    }
