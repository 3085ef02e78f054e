"""Several samples a problem, saved as they come, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctpo.evaluation.metrics import majority, mean_and_error, pass_at_k, reported_ks
from ctpo.rollout import Rollout, ToolRunner, TransformersEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.engine import Sampling
from ctpo.rollout.noise import row_uniforms
from ctpo.tasks import Problem, Task

Row = dict[str, Any]


def sample_task(
    engine: TransformersEngine,
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
        saved: JSONL file of rows; blocks that it holds already are not sampled again.
        progress: told the number of problems done.
    Returns:
        One row a sample, problem by problem: id, sample, prompt, answer, completion, found, correct, finished,
        tokens (the model's own), calls.
    """
    size = max(1, rows_at_once // samples)
    blocks = [problems[i : i + size] for i in range(0, len(problems), size)]
    rows = _whole_blocks(saved, blocks, samples)
    done = -(-len(rows) // (size * samples))  # rounded up: the last block may be smaller
    for index in range(done, len(blocks)):
        progress(index * size)
        block = _sample_block(engine, task, blocks[index], sampling, samples, tools, seed, index * size)
        if saved is not None:
            with saved.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in block))
        rows += block
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
    }


def _share(rows: Sequence[Row], what: Callable[[Row], bool]) -> float:
    return sum(map(what, rows)) / len(rows)


def _sample_block(
    engine: TransformersEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    samples: int,
    tools: ToolRunner | None,
    seed: int,
    first: int,
) -> list[Row]:
    """Sample these problems, of which the first is number `first` of the set."""
    prompts = [encode_prompt(engine.tokenizer, task, problem.prompt) for problem in problems]
    fitting = [engine.fits(prompt, sampling) for prompt in prompts]
    if not any(fitting):
        fitting = [True] * len(prompts)  # the engine's own message says what is wrong
    asked = [prompt for prompt, fits in zip(prompts, fitting, strict=True) if fits for _ in range(samples)]
    numbers = [(first + i) * samples + j for i, fits in enumerate(fitting) if fits for j in range(samples)]
    uniforms = row_uniforms(numbers, sampling.max_new_tokens, seed=seed)
    rollouts = iter(engine.generate(asked, sampling, tools=tools, uniforms=uniforms))
    return [
        _row(engine, task, problem, sample, next(rollouts) if fits else None)
        for problem, fits in zip(problems, fitting, strict=True)
        for sample in range(samples)
    ]


def _row(
    engine: TransformersEngine, task: Task, problem: Problem, sample: int, rollout: Rollout | None
) -> Row:
    """One judged response; a problem too long for the model's context counts as not solved."""
    ids = rollout.completion_ids if rollout else []
    text: str = engine.tokenizer.decode(ids, skip_special_tokens=True)
    return {
        "id": problem.id,
        "sample": sample,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "completion": text,
        "found": task.extract(text) if task.extract is not None and rollout else None,
        "correct": bool(rollout) and bool(task.check(text, problem.answer)),
        "finished": bool(rollout and rollout.finished),
        "tokens": sum(rollout.model_mask) if rollout else 0,
        "calls": [asdict(call) for call in rollout.calls] if rollout else [],
        "too_long": rollout is None,
    }


def _whole_blocks(saved: Path | None, blocks: Sequence[Sequence[Problem]], samples: int) -> list[Row]:
    """The rows of the blocks that an earlier evaluation completed; the file is cut back to these."""
    if saved is None or not saved.is_file():
        return []
    rows = list(_readable(saved))
    whole: list[Row] = []
    for block in blocks:
        part = rows[len(whole) : len(whole) + len(block) * samples]
        expected = [(problem.id, sample) for problem in block for sample in range(samples)]
        if [(row.get("id"), row.get("sample")) for row in part] != expected:
            break
        whole += part
    saved.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole), encoding="utf-8")
    return whole


def _readable(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return  # cut short by a kill
        if not isinstance(row, dict):
            return
        yield row
