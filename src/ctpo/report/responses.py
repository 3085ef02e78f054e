"""The responses that a page shows, held-out transcripts and training samples, within a budget of characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ctpo.report.collection import Collection
from ctpo.runs.reader import Record, Run, number

BUDGET: Final = 2_400_000
"""Characters of responses in the page, for all runs together."""

_MOST_PER_RUN: Final = 600_000
_LEAST_PER_RUN: Final = 24_000
_LONGEST_TEXT: Final = 40_000
"""Characters of one prompt, completion or tool output. The rest is cut, and the text says so."""
_LONGEST_SAMPLE: Final = 4_000
"""Tokens of one training sample."""


@dataclass(frozen=True, kw_only=True)
class ShownBatch:
    """The responses of one rollout batch that the page shows."""

    batch: int
    rows: list[Record]
    left_out: int
    """How many undamaged responses of the batch the page does not show."""
    characters: int


@dataclass(frozen=True, kw_only=True)
class ShownResponses:
    """The responses of one run that the page shows, in the order of the batches."""

    heldout: list[ShownBatch] = field(default_factory=list)
    samples: list[ShownBatch] = field(default_factory=list)


def all_responses(collection: Collection) -> list[ShownResponses]:
    """Return the responses to show, one entry per run.

    If there are more runs than the budget allows for, only the first seeds of each group have any.
    """
    runs = collection.runs
    seed_ranks = [rank for group in collection.groups for rank in range(len(group.runs))]
    by_rank = sorted(range(len(runs)), key=lambda place: seed_ranks[place])
    served = set(by_rank[: BUDGET // _LEAST_PER_RUN])
    if len(served) < len(runs):
        collection.notes.append(
            f"the page holds responses of {len(served)} of {len(runs)} runs, the first seeds of each group"
        )
    return [
        responses(run, len(served)) if place in served else ShownResponses() for place, run in enumerate(runs)
    ]


def responses(run: Run, runs: int) -> ShownResponses:
    """Return the responses of one run to show.

    The last rollout batch comes first, then the first, then those between. Each takes its first rows, up to half of
    the characters that are left.

    Args:
        run: the run; what it lacks is added to its notes.
        runs: the number of runs that share the budget.
    """
    allowed = min(_MOST_PER_RUN, BUDGET // max(runs, 1))
    if run.of_warm_up:
        return ShownResponses(heldout=[], samples=[])  # it samples no responses
    samples = _chosen(run, run.batches("samples"), allowed // 2, _sample)
    spent = sum(batch.characters for batch in samples)
    heldout = _chosen(run, run.batches("transcripts"), allowed - spent, _transcript)
    if run.switched_off("transcripts"):
        run.notes.append("transcripts: 0 in its recipe: no responses were kept")
        return ShownResponses(heldout=heldout, samples=samples)
    if not heldout and not run.of_script:
        run.notes.append("transcripts/ holds no held-out responses")
    if not samples and not run.switched_off("diagnostics"):
        run.notes.append("samples/ holds no training responses, so no text shows ratios and clipping")
    return ShownResponses(heldout=heldout, samples=samples)


def _chosen(
    run: Run, files: Mapping[int, Path], allowed: int, prepare: Callable[[Record], Record | None]
) -> list[ShownBatch]:
    """Return the batches to show, within a number of characters; `prepare` returns None for a damaged row."""
    chosen: list[ShownBatch] = []
    for batch in _most_interesting_first(sorted(files)):
        if allowed <= 0:
            break
        rows = run.rows(files[batch])
        kept: list[Record] = []
        spent = damaged = 0
        for row in rows:
            prepared = prepare(row)
            if prepared is None:
                damaged += 1
                continue
            size = len(json.dumps(prepared, separators=(",", ":")))
            if spent + size > allowed / 2 and (kept or chosen):
                break
            kept.append(prepared)
            spent += size
        if damaged:
            run.notes.append(f"{files[batch].relative_to(run.path)}: {damaged} damaged rows are left out")
        allowed -= spent
        if kept:
            left_out = len(rows) - len(kept) - damaged
            chosen.append(ShownBatch(batch=batch, rows=kept, left_out=left_out, characters=spent))
    return sorted(chosen, key=lambda each: each.batch)


def _most_interesting_first(batches: Sequence[int]) -> list[int]:
    """Return the last batch, the first, the middle one of those between, and so on by halving."""
    if len(batches) < 3:
        return list(reversed(batches))
    order = [batches[-1], batches[0]]
    gaps = [(1, len(batches) - 1)]
    while gaps:
        start, end = gaps.pop(0)
        if start < end:
            middle = (start + end) // 2
            order.append(batches[middle])
            gaps += [(start, middle), (middle + 1, end)]
    return order


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]} … [{len(text) - _LONGEST_TEXT:,} characters more]"


def _transcript(row: Record) -> Record | None:
    if not isinstance(row.get("completion"), str):
        return None
    calls = row.get("calls")
    return {
        "prompt": _text(row.get("prompt")),
        "answer": _text(row.get("answer")),
        "completion": _text(row["completion"]),
        "correct": row.get("correct") if isinstance(row.get("correct"), bool) else None,
        "finished": row.get("finished") is not False,
        "calls": [
            {name: _text(call.get(name)) for name in ("program", "status", "output")}
            for call in (calls if isinstance(calls, list) else [])
            if isinstance(call, dict)
        ],
    }


def _sample(row: Record) -> Record | None:
    tokens = row.get("tokens")
    columns = [row.get(name) for name in ("model", "log_ratio", "log_weight", "clip", "position")]
    if not isinstance(tokens, list) or any(
        not isinstance(column, list) or len(column) != len(tokens) for column in columns
    ):
        return None
    kept = slice(_LONGEST_SAMPLE)
    model, ratio, weight, clip, position = (column[kept] for column in columns if column is not None)
    return {
        "prompt": _text(row.get("prompt")),
        "advantage": number(row.get("advantage")),
        "reward": number(row.get("reward")),
        "tokens": [str(token) for token in tokens[kept]],
        "model": "".join("1" if each else "0" for each in model),
        "ratio": [_rounded(each) for each in ratio],
        "weight": [_rounded(each) for each in weight],
        "clip": [each if each in (1, -1, 2) else 0 for each in clip],
        "position": [int(number(each) or 0) for each in position],
        "cut": max(len(tokens) - _LONGEST_SAMPLE, 0),
    }


def _rounded(value: Any) -> float | None:
    known = number(value)
    return None if known is None else float(f"{known:.3g}")
