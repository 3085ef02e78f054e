"""Several samples a problem, saved as they come, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctpo.errors import UserError
from ctpo.evaluation.metrics import majority, mean_and_error, pass_at_k, reported_ks
from ctpo.evaluation.samplers import Response, endpoint_responses, local_responses
from ctpo.rollout import EndpointEngine, ToolRunner, TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.runs.atomic import json_line, write_json_lines
from ctpo.tasks import Problem, Task
from ctpo.tasks.task import verdict

Row = dict[str, Any]


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
) -> list[Row]:
    """Sample and judge every problem `samples` times.

    Problems go through in blocks, written to `saved` when they are whole, and each sample draws from random
    numbers of its own: an evaluation that was interrupted and continued gives what an undisturbed one gives.

    Args:
        saved: JSONL file of rows; blocks that it holds already are not sampled again, save those with a request
            that failed.
        progress: told the number of problems done.
    Returns:
        One row a sample, problem by problem: id, sample, prompt, answer, completion, found, correct, verdict,
        finished, tokens (the model's own), calls, too_long, error (None where every request was answered).
    Raises:
        UserError: if an endpoint has stopped answering at all.
    """
    size = max(1, rows_at_once // samples)
    blocks = [problems[i : i + size] for i in range(0, len(problems), size)]
    held = _whole_blocks(saved, blocks, samples)
    rows: list[Row] = []
    for index, block in enumerate(blocks):
        kept = held[index] if index < len(held) else None
        if kept is None or any(row.get("error") for row in kept):
            progress(index * size)
            kept = _sample_block(engine, task, block, sampling, samples, tools, seed, index * size)
            _save(saved, rows, kept, held[index:])
        rows += kept
    progress(len(problems))
    return rows


def summarise(rows: Sequence[Row], samples: int) -> dict[str, Any]:
    """The figures of one task: means over problems, each with a standard error clustered by problem."""
    groups = [rows[i : i + samples] for i in range(0, len(rows), samples)]
    right = [sum(row["correct"] for row in group) for group in groups]
    average, error = mean_and_error([c / samples for c in right])
    figures: dict[str, Any] = {
        "pass@1": average,  # kept beside avg@k, which it equals: readers look for either
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
        votes = [majority([r["found"] for r in group], [r["correct"] for r in group]) for group in groups]
        figures["identical"] = sum(len({r["completion"] for r in group}) == 1 for group in groups) / len(
            groups
        )
        figures[f"majority@{samples}"], figures["majority_stderr"] = mean_and_error(votes)
    tokens, tokens_error = mean_and_error([sum(r["tokens"] for r in group) / samples for group in groups])
    return {
        **figures,
        "tool_use": _share(rows, lambda row: bool(row["calls"])),
        "tool_calls": sum(len(row["calls"]) for row in rows) / len(rows),
        "tool_failures": sum(call["status"] != "ok" for row in rows for call in row["calls"]),
        "tokens": tokens,
        "tokens_stderr": tokens_error,
        "finished": _share(rows, lambda row: row["finished"]),
        "answered": _share(rows, lambda row: row["found"] is not None),
        "too_long": len({row["id"] for row in rows if row["too_long"]}),
        "failed_requests": sum(bool(row.get("error")) for row in rows),
        "verdicts": dict(Counter(row["verdict"] for row in rows if row.get("verdict")).most_common()),
    }


def _share(rows: Sequence[Row], what: Callable[[Row], bool]) -> float:
    return sum(map(what, rows)) / len(rows)


def _sample_block(
    engine: TransformersEngine | EndpointEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    samples: int,
    tools: ToolRunner | None,
    seed: int,
    first: int,
) -> list[Row]:
    """The rows of these problems, of which the first is the task's number `first`."""
    if isinstance(engine, EndpointEngine):
        responses = endpoint_responses(
            engine, task, problems, sampling, samples=samples, tools=tools, seed=seed + first * samples
        )
        if all(response.error for response in responses):
            # A 4xx is the server's opinion of the request itself (an option it lacks, a context that is too short).
            what = (
                "refuses every request"
                if str(responses[0].error).startswith("HTTP 4")
                else "has stopped answering"
            )
            raise UserError(
                f"endpoint {engine.endpoint.url} {what} at problem {first + 1} of task {task.name!r} "
                f"({responses[0].error}); the same command with --output continues once it answers"
            )
    else:
        responses = local_responses(
            engine, task, problems, sampling, samples=samples, tools=tools, seed=seed, first=first
        )
    asked = [(problem, sample) for problem in problems for sample in range(samples)]
    return [
        _row(task, problem, sample, response)
        for (problem, sample), response in zip(asked, responses, strict=True)
    ]


def _row(task: Task, problem: Problem, sample: int, response: Response) -> Row:
    """One judged response; one that could not be had counts as not solved."""
    had = not response.too_long and response.error is None
    judged = verdict(task, response.text, problem.answer) if had else None
    return {
        "id": problem.id,
        "sample": sample,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "completion": response.text,
        "found": task.extract(response.text) if task.extract is not None and had else None,
        "correct": judged == "right",
        "verdict": judged,
        "finished": response.finished,
        "tokens": response.tokens,
        "calls": [asdict(call) for call in response.calls],
        "too_long": response.too_long,
        "error": response.error,
    }


def _whole_blocks(saved: Path | None, blocks: Sequence[Sequence[Problem]], samples: int) -> list[list[Row]]:
    """The rows of the blocks that an earlier evaluation completed; the file is cut back to these."""
    if saved is None or not saved.is_file():
        return []
    rows = list(_readable(saved))
    whole: list[list[Row]] = []
    start = 0
    for block in blocks:
        part = rows[start : start + len(block) * samples]
        expected = [(problem.id, sample) for problem in block for sample in range(samples)]
        if [(row.get("id"), row.get("sample")) for row in part] != expected:
            break
        whole.append(part)
        start += len(part)
    write_json_lines(saved, rows[:start])
    return whole


def _save(saved: Path | None, before: list[Row], new: list[Row], held: list[list[Row]]) -> None:
    """Append a block, or put it in the place of the first of the blocks that are `held` from there on."""
    if saved is None:
        return
    if held:
        write_json_lines(saved, [*before, *new, *(row for block in held[1:] for row in block)])
        return
    with saved.open("a", encoding="utf-8") as file:
        file.writelines(map(json_line, new))


def _readable(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return  # cut short by a kill
        if not isinstance(row, dict):
            return
        yield row
