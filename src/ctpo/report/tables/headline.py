"""The headline numbers at the top of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctpo.report.collection import Collection, run_score
from ctpo.report.tables.words import duration, percent
from ctpo.runs.reader import Record, Run, number
from ctpo.runs.scores import score_name


@dataclass(frozen=True, kw_only=True)
class Card:
    """One headline number."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A held-out pass@1."""

    value: float
    stderr: float | None
    problems: float | None
    """The number of held-out problems."""


def cards(collection: Collection) -> list[Card]:
    """Return the headline numbers of a single run, or of several."""
    runs = collection.runs
    if len(runs) == 1:
        return _cards_of_run(runs[0])
    return _cards_of_runs(collection) if runs else []


def _cards_of_runs(collection: Collection) -> list[Card]:
    runs = collection.runs
    scores = [score for run in runs if (score := run_score(run)) is not None]
    shown = [
        Card(label="runs", value=str(len(runs)), detail=f"{len(scores)} finished"),
        Card(
            label="groups compared",
            value=str(len(collection.groups)),
            detail=f"{_seeds_per_group(collection)} each",
        ),
    ]
    if len(collection.regimes) > 1:
        shown.append(Card(label="regimes", value=str(len(collection.regimes))))
    if scores:
        best = max(scores, key=lambda score: score.final)
        shown += [
            Card(
                label=f"best final {collection.score_name}", value=percent(best.final),
                detail="of all runs; its seed may be lucky",
            ),
            Card(
                label="collapsed", value=f"{sum(score.collapsed for score in scores)} of {len(scores)}",
                detail="ended below half of their own best",
            ),
            Card(label="time", value=duration(sum(score.seconds for score in scores)), detail="all runs together"),
        ]  # fmt: skip
    return shown


def _seeds_per_group(collection: Collection) -> str:
    counts = sorted({len(group.runs) for group in collection.groups})
    if counts == [1]:
        return "one seed"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]}–{counts[-1]} seeds"


def _cards_of_run(run: Run) -> list[Card]:
    before, after = heldout(run)
    trained = [record for record in run.records if record.get("batch")]
    label = "command" if run.of_warm_up else "objective"
    shown = [Card(label=label, value=run.objective, detail="" if run.seed is None else f"seed {run.seed}")]
    losses = [value for record in run.records if (value := number(record.get("heldout_loss"))) is not None]
    if run.of_warm_up and losses:
        detail = (
            f"nats per token, from {losses[0]:.2f}" if len(losses) > 1 else "nats per token, before training"
        )
        shown.append(Card(label="held-out loss", value=f"{losses[-1]:.2f}", detail=detail))
    if after is not None:
        detail = ""
        if after.stderr is not None and after.problems:
            detail = f"± {percent(after.stderr)} over {after.problems:,.0f} problems"
        name = score_name((run.summary.get("before"), run.summary.get("after")))
        label = f"final held-out {name}" if run.summary else f"last held-out {name}"
        shown.append(Card(label=label, value=percent(after.value), detail=detail))
        if before is not None:
            shown.append(_gain(run, before, after))
    seconds = number(run.summary.get("wall_clock_s")) or _last(run.records, "seconds")
    if seconds is not None:
        unit = "optimizer steps" if run.of_warm_up else "rollout batches"
        shown.append(Card(label="time", value=duration(seconds), detail=f"{len(trained)} {unit}"))
    tokens, spent = _total(trained, "tokens"), _total(trained, "batch_s")
    if tokens and spent:
        shown.append(
            Card(
                label="tokens per second",
                value=f"{tokens / spent:,.0f}",
                detail="over generation, tools and updates",
            )
        )
    calls = _last(trained, "tool_calls_per_response")
    if calls is not None:
        failed, made = _total(trained, "tool_failures"), _total(trained, "tool_calls")
        detail = f"{percent(failed / made)} of {made:,.0f} failed" if made and failed is not None else ""
        shown.append(Card(label="tool calls per response", value=f"{calls:.1f}", detail=detail))
    return shown


def _gain(run: Run, before: Accuracy, after: Accuracy) -> Card:
    """Return the card of the gain, over the problems that both evaluations have if the run says so."""
    value, start = after.value - before.value, f"points, from {percent(before.value)}"
    if before.problems == after.problems or before.problems is None:
        return Card(label="gain", value=f"{100 * value:+.1f}", detail=start)
    paired = number((run.summary.get("after") or {}).get("gain"))
    start += f" over {before.problems:,.0f} problems"
    if paired is None:
        return Card(label="gain", value=f"{100 * value:+.1f}", detail=f"{start}, not the same as at the end")
    return Card(label="gain", value=f"{100 * paired:+.1f}", detail=f"{start}, the same ones after training")


def heldout(run: Run) -> tuple[Accuracy | None, Accuracy | None]:
    """Return the held-out accuracy before and after training; of an unfinished run, the first and last it recorded."""
    if run.summary:
        names = ("pass@1", "stderr", "problems")
        return _accuracy(run.summary.get("before"), *names), _accuracy(run.summary.get("after"), *names)
    names = ("heldout_pass@1", "heldout_stderr", "heldout_problems")
    measured = [known for record in run.records if (known := _accuracy(record, *names)) is not None]
    return (measured[0], measured[-1]) if measured else (None, None)


def _accuracy(figures: Any, value: str, stderr: str, problems: str) -> Accuracy | None:
    """Return the accuracy that a mapping holds under these names; None if it holds none."""
    if not isinstance(figures, Mapping) or (known := number(figures.get(value))) is None:
        return None
    return Accuracy(value=known, stderr=number(figures.get(stderr)), problems=number(figures.get(problems)))


def _last(records: Sequence[Record], name: str) -> float | None:
    return next(
        (value for record in reversed(records) if (value := number(record.get(name))) is not None), None
    )


def _total(records: Iterable[Record], name: str) -> float | None:
    values = [value for record in records if (value := number(record.get(name))) is not None]
    return math.fsum(values) if values else None
