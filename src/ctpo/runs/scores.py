"""The figures that a comparison and a report take from a run's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctpo.errors import UserError

COLLAPSE: float = 0.5
"""A run has collapsed when its final held-out accuracy is below this share of the best it had: held-out accuracy or
mean reward of a rollout batch, whichever was higher."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One finished run."""

    final: float
    """Held-out pass@1 after training."""
    auc: float
    """Mean over rollout batches of the training reward, the area under the learning curve on a unit of time."""
    collapsed: bool
    seconds: float
    stderr: float | None = None
    """Of `final`, over the held-out problems."""
    clip_fraction: float | None = None
    """Mean over rollout batches of the share of tokens whose gradient the trust region removed."""
    ess: float | None = None
    """Least relative effective sample size of a rollout batch."""

    def named(self, name: str) -> float:
        """`final` or `auc`."""
        value: float = getattr(self, name)
        return value


def read_score(run: Path) -> Score | None:
    """The figures of a run, or None where it is not finished.

    Raises:
        UserError: if a file of a finished run is damaged.
    """
    summary_path = run / "summary.json"
    if not summary_path.is_file():
        return None
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        records = [
            json.loads(line)
            for line in (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
            if line
        ]
        return score(summary, records)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{run} is damaged ({error}); delete it, and the comparison runs it again") from None


def score(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Score:
    """The figures of what the files hold.

    Raises:
        KeyError, TypeError, ZeroDivisionError: if something is not there.
    """
    # A reward lost to a non-finite batch counts as no right answer, not as a batch that was not there.
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
        ess=min(ess, default=None),
    )


def _column(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [record[name] for record in records if record.get(name) is not None]
