"""Which transcripts and training samples go into the page, within a budget of characters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ctpo.report.collection import Collection
from ctpo.runs.reader import Record, Run, number

BUDGET: Final = 2_400_000
"""Characters of text in the page, all runs together."""

_MOST_A_RUN: Final = 600_000
_LEAST_A_RUN: Final = 24_000
_LONGEST_TEXT: Final = 40_000
"""Characters of one prompt, completion or tool output; the rest is cut, with a mark."""
_LONGEST_SAMPLE: Final = 4_000
"""Tokens of one training sample."""

Batch = dict[str, Any]


def all_texts(collection: Collection) -> list[dict[str, list[Batch]]]:
    """`texts` of every run; of more than the budget serves, only the first seeds of each group have any."""
    runs = collection.runs
    ranks = [rank for group in collection.groups for rank in range(len(group.runs))]
    served = set(sorted(range(len(runs)), key=lambda place: ranks[place])[: BUDGET // _LEAST_A_RUN])
    if len(served) < len(runs):
        collection.notes.append(
            f"the page holds responses of {len(served)} of {len(runs)} runs, the first seeds of each group"
        )
    nothing: dict[str, list[Batch]] = {"heldout": [], "samples": []}
    return [texts(run, len(served)) if place in served else nothing for place, run in enumerate(runs)]


def texts(run: Run, runs: int) -> dict[str, list[Batch]]:
    """A run's held-out transcripts and training samples, its share of the budget among so many runs.

    The last batch goes first, then the first, then those between; each takes its first rows, up to half of what is
    left. Every batch says how many of its rows are not there.
    """
    allowed = min(_MOST_A_RUN, BUDGET // max(runs, 1))
    samples = _chosen(run, run.batches("samples"), allowed // 2, _sample)
    spent = sum(batch.pop("size") for batch in samples)
    heldout = _chosen(run, run.batches("transcripts"), allowed - spent, _transcript)
    for batch in heldout:
        del batch["size"]
    if run.switched_off("transcripts"):
        run.notes.append("transcripts: 0 in its recipe: no responses were kept")
        return {"heldout": heldout, "samples": samples}
    if not heldout:
        run.notes.append("transcripts/ holds no held-out responses")
    if not samples and not run.switched_off("diagnostics"):
        run.notes.append("samples/ holds no training responses (ratios and clipping on the text)")
    return {"heldout": heldout, "samples": samples}


def _chosen(
    run: Run, files: Mapping[int, Path], allowed: int, prepare: Callable[[Record], Record | None]
) -> list[Batch]:
    found: list[Batch] = []
    for batch in _by_interest(sorted(files)):
        if allowed <= 0:
            break
        rows = run.rows(files[batch])
        kept: list[Record] = []
        spent = strangers = 0
        for row in rows:
            prepared = prepare(row)
            if prepared is None:
                strangers += 1
                continue
            size = len(json.dumps(prepared, separators=(",", ":")))
            if spent + size > allowed / 2 and (kept or found):
                break
            kept.append(prepared)
            spent += size
        if strangers:
            run.notes.append(
                f"{files[batch].relative_to(run.path)}: {strangers} rows are not whole and left out"
            )
        allowed -= spent
        if kept:
            left_out = len(rows) - len(kept) - strangers
            found.append({"batch": batch, "rows": kept, "left_out": left_out, "size": spent})
    return sorted(found, key=lambda each: each["batch"])


def _by_interest(batches: Sequence[int]) -> list[int]:
    """Last, first, then the middle of what is between, and so on."""
    if len(batches) < 3:
        return list(reversed(batches))
    found = [batches[-1], batches[0]]
    gaps = [(1, len(batches) - 1)]
    while gaps:
        start, end = gaps.pop(0)
        if start < end:
            middle = (start + end) // 2
            found.append(batches[middle])
            gaps += [(start, middle), (middle + 1, end)]
    return found


def _text(value: Any) -> str:
    told = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    if len(told) <= _LONGEST_TEXT:
        return told
    return f"{told[:_LONGEST_TEXT]} … [{len(told) - _LONGEST_TEXT:,} characters more]"


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
