"""What a reader wants to know first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctpo.report.collection import Collection, run_score
from ctpo.report.tables.words import duration, percent
from ctpo.runs.reader import Record, Run, number


@dataclass(frozen=True, kw_only=True)
class Card:
    """One headline number."""

    label: str
    value: str
    detail: str = ""


def cards(collection: Collection) -> list[Card]:
    """What a reader wants to know first."""
    runs = collection.runs
    if len(runs) == 1:
        return _run_cards(runs[0])
    scores = [score for run in runs if (score := run_score(run)) is not None]
    if not runs:  # a comparison whose runs are elsewhere
        return []
    seeds = sorted({len(group.runs) for group in collection.groups})
    told = (
        "one seed"
        if seeds == [1]
        else f"{seeds[0]} seeds"
        if len(seeds) == 1
        else f"{seeds[0]}–{seeds[-1]} seeds"
    )
    found = [
        Card(label="runs", value=str(len(runs)), detail=f"{len(scores)} finished"),
        Card(
            label="groups compared",
            value=str(len(collection.groups)),
            detail=f"{told} each",
        ),
    ]
    if len(collection.regimes) > 1:
        found.append(Card(label="regimes", value=str(len(collection.regimes))))
    if scores:
        best = max(scores, key=lambda score: score.final)
        found += [
            Card(label="best final pass@1", value=percent(best.final), detail="of all runs, a lucky seed included"),
            Card(
                label="collapsed", value=f"{sum(score.collapsed for score in scores)} of {len(scores)}",
                detail="ended below half of their own best",
            ),
            Card(label="time", value=duration(sum(score.seconds for score in scores)), detail="all runs together"),
        ]  # fmt: skip
    return found


def _run_cards(run: Run) -> list[Card]:
    before, after = heldout(run)
    trained = [record for record in run.records if record.get("batch")]
    found = [
        Card(label="objective", value=run.objective, detail="" if run.seed is None else f"seed {run.seed}")
    ]
    if after is not None:
        value, stderr, problems = after
        detail = (
            f"± {percent(stderr)} over {problems:,.0f} problems" if stderr is not None and problems else ""
        )
        label = "final held-out pass@1" if run.summary else "last held-out pass@1"
        found.append(Card(label=label, value=percent(value), detail=detail))
        if before is not None:
            found.append(
                Card(
                    label="gain",
                    value=f"{100 * (value - before[0]):+.1f}",
                    detail=f"points, from {percent(before[0])}",
                )
            )
    seconds = number(run.summary.get("wall_clock_s")) or _last(run.records, "seconds")
    if seconds is not None:
        found.append(Card(label="time", value=duration(seconds), detail=f"{len(trained)} rollout batches"))
    tokens, spent = _total(trained, "tokens"), _total(trained, "batch_s")
    if tokens and spent:
        found.append(
            Card(
                label="tokens per second",
                value=f"{tokens / spent:,.0f}",
                detail="generation, tools, updates",
            )
        )
    calls = _last(trained, "tool_calls_per_response")
    if calls is not None:
        failed, made = _total(trained, "tool_failures"), _total(trained, "tool_calls")
        detail = f"{percent(failed / made)} of {made:,.0f} failed" if made and failed is not None else ""
        found.append(Card(label="tool calls per response", value=f"{calls:.1f}", detail=detail))
    return found


def heldout(run: Run) -> tuple[tuple[float, float | None, float | None] | None, ...]:
    """(pass@1, standard error, problems) before and after; of an unfinished run, of its first and last record."""
    if run.summary:
        return tuple(
            _pass(run.summary.get(when), "pass@1", "stderr", "problems") for when in ("before", "after")
        )
    names = ("heldout_pass@1", "heldout_stderr", "heldout_problems")
    told = [found for record in run.records if (found := _pass(record, *names)) is not None]
    return (told[0], told[-1]) if told else (None, None)


def _pass(told: Any, *names: str) -> tuple[float, float | None, float | None] | None:
    if not isinstance(told, Mapping):
        return None
    value, stderr, problems = (number(told.get(name)) for name in names)
    return None if value is None else (value, stderr, problems)


def _last(records: Sequence[Record], name: str) -> float | None:
    return next(
        (value for record in reversed(records) if (value := number(record.get(name))) is not None), None
    )


def _total(records: Iterable[Record], name: str) -> float | None:
    values = [value for record in records if (value := number(record.get(name))) is not None]
    return math.fsum(values) if values else None
