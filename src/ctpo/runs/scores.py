"""The scores that a comparison and a report give to a finished run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.runs.directory import RunDirectory
from ctpo.runs.files import read_text
from ctpo.runs.json_lines import read_json_lines

COLLAPSE: Final = 0.5
"""A run has collapsed if its final held-out accuracy is below this share of the best it had. The best is the highest
held-out accuracy or mean reward of a rollout batch."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The scores of one finished run."""

    final: float
    """Held-out pass@1 after training."""
    auc: float
    """Mean training reward over the rollout batches: the area under the learning curve, per rollout batch."""
    collapsed: bool
    seconds: float
    """Wall-clock time of the run."""
    stderr: float | None = None
    """Standard error of `final` over the held-out problems."""
    clip_fraction: float | None = None
    """Share of tokens whose gradient the trust region removed, averaged over the rollout batches."""
    graded: bool = False
    """Whether `final` is a mean of graded scores, and no share of right answers."""
    ess: float | None = None
    """The smallest relative effective sample size of any rollout batch."""

    def named(self, name: str) -> float:
        """Return the score with this name, `final` or `auc`."""
        value: float = getattr(self, name)
        return value


def score_name(figures: Iterable[Any]) -> str:
    """What the mean of held-out scores is called: "pass@1", or "score" if responses were graded in one evaluation.

    Args:
        figures: of evaluations, as `summary.json` and `eval.json` hold them; what is no mapping is left out.
    """
    return "score" if any(isinstance(each, Mapping) and each.get("graded") for each in figures) else "pass@1"


def read_score(run: Path) -> Score | None:
    """Return the scores of the run in this directory, or None if it is not finished.

    Raises:
        UserError: if a file of a finished run is damaged.
    """
    directory = RunDirectory(run)
    if not directory.summary.is_file():
        return None
    try:
        summary = json.loads(read_text(directory.summary))
        lines = read_json_lines(directory.metrics)
        damaged = [line.number for line in lines if line.record is None]
        if damaged:
            raise ValueError(f"{directory.metrics.name} line {damaged[0]} is no JSON object")
        return score(summary, [line.record for line in lines if line.record is not None])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{run} is damaged ({error}); delete it, and the comparison runs it again") from None


def score(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Score:
    """Return the scores of a run from the contents of its files.

    Args:
        summary: the content of `summary.json`.
        records: the lines of `metrics.jsonl`.

    Raises:
        KeyError, TypeError, ZeroDivisionError: if a figure is missing or is no number.
    """
    # A reward of None belongs to a batch that was not finite. It counts as 0; leaving it out would reward the loss.
    rewards = [record.get("reward") or 0.0 for record in records if record["batch"] > 0]
    heldout = [record["heldout_pass@1"] for record in records if record.get("heldout_pass@1") is not None]
    final = float(summary["after"]["pass@1"])
    clipped, ess = _column(records, "clip_fraction"), _column(records, "ess")
    return Score(
        final=final,
        auc=sum(rewards) / len(rewards),
        collapsed=final < COLLAPSE * max([final, *heldout, *rewards]),
        seconds=float(summary["wall_clock_s"]),
        stderr=summary["after"].get("stderr"),
        clip_fraction=sum(clipped) / len(clipped) if clipped else None,
        graded=score_name([summary["after"]]) == "score",
        ess=min(ess, default=None),
    )


def _column(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [record[name] for record in records if record.get(name) is not None]
