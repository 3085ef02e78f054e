"""Several responses to each problem, saved as they come, so that an interrupted evaluation can continue."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctpo.evaluation.judged import JudgedResponse, sample_problems
from ctpo.evaluation.metrics import majority, mean_and_error, pass_at_k, reported_ks
from ctpo.rollout import EndpointEngine, ToolRunner, TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.runs.atomic import json_line, write_json_lines
from ctpo.runs.json_lines import read_json_lines
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
        saved: a JSON Lines file of responses. Blocks that it holds already are not sampled again, except blocks in
            which a request failed.
        progress: called with the number of problems that are done.

    Raises:
        UserError: if an endpoint has stopped answering at all.
    """
    size = max(1, rows_at_once // samples)
    blocks = [problems[i : i + size] for i in range(0, len(problems), size)]
    held = _complete_blocks(saved, blocks, samples)
    responses: list[JudgedResponse] = []
    for index, block in enumerate(blocks):
        kept = held[index] if index < len(held) else None
        if kept is None or any(response.error for response in kept):
            progress(index * size)
            kept = sample_problems(
                engine, task, block, sampling, samples=samples, tools=tools, seed=seed, first=index * size
            )
            _save(saved, responses, kept, held[index:])
        responses += kept
    progress(len(problems))
    return responses


def summarise(responses: Sequence[JudgedResponse], samples: int) -> dict[str, Any]:
    """The figures of one task: means over problems, each with a standard error clustered by problem.

    Args:
        responses: problem by problem, `samples` for each.
    """
    groups = [responses[i : i + samples] for i in range(0, len(responses), samples)]
    right = [sum(response.correct for response in group) for group in groups]
    average, error = mean_and_error([c / samples for c in right])
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
        votes = [majority([r.extracted for r in group], [r.correct for r in group]) for group in groups]
        identical = sum(len({r.text for r in group}) == 1 for group in groups)
        figures["identical"] = identical / len(groups)
        figures[f"majority@{samples}"], figures["majority_stderr"] = mean_and_error(votes)
    tokens, tokens_error = mean_and_error([sum(r.tokens for r in group) / samples for group in groups])
    n = len(responses)
    return {
        **figures,
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


def _complete_blocks(
    saved: Path | None, blocks: Sequence[Sequence[Problem]], samples: int
) -> list[list[JudgedResponse]]:
    """The blocks that an earlier evaluation completed. The rest of the file is cut off."""
    if saved is None or not saved.is_file():
        return []
    responses = list(_read(saved))
    complete: list[list[JudgedResponse]] = []
    start = 0
    for block in blocks:
        part = responses[start : start + len(block) * samples]
        expected = [(problem.id, sample) for problem in block for sample in range(samples)]
        if [(response.problem.id, response.sample) for response in part] != expected:
            break
        complete.append(part)
        start += len(part)
    write_json_lines(saved, [response.record() for response in responses[:start]])
    return complete


def _save(
    saved: Path | None,
    before: Sequence[JudgedResponse],
    block: Sequence[JudgedResponse],
    held: Sequence[Sequence[JudgedResponse]],
) -> None:
    """Append a block to the file. If the file holds this block and later ones (`held`), replace the block instead."""
    if saved is None:
        return
    if held:
        later = [response for other in held[1:] for response in other]
        write_json_lines(saved, [response.record() for response in (*before, *block, *later)])
        return
    with saved.open("a", encoding="utf-8") as file:
        file.writelines(json_line(response.record()) for response in block)


def _read(path: Path) -> Iterator[JudgedResponse]:
    """The responses in a file, up to the first line that cannot be read: a kill may have cut it short."""
    for line in read_json_lines(path, most=sys.maxsize):  # long responses, many of each
        try:
            yield JudgedResponse.from_record(line.record or {})
        except (ValueError, KeyError, TypeError):
            return
