"""The result of a run, as `summary.json` holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctpo.runs.directory import RunDirectory
from ctpo.training.config.config import CTPOConfig


def summarise(
    config: CTPOConfig, run: RunDirectory, *, steps: int, seconds: float, **facts: Any
) -> dict[str, Any]:
    """The content of `summary.json`.

    `before` and `after` hold the first and the last held-out figures. They are empty where none were measured, and
    `before` also where the first were measured after updates.

    Args:
        config: of the trainer.
        run: the directory with the records.
        steps: optimizer steps taken.
        seconds: wall-clock time of the run.
        facts: what else the summary holds.
    """
    records = run.records()
    evaluated = [record for record in records if _heldout(record)]
    return {
        "objective": config.objective,
        "objective_kwargs": config.objective_settings(),
        "seed": config.seed,
        "steps": steps,
        "rollout_batches": steps // config.updates_per_rollout_batch,
        "before": _heldout(evaluated[0]) if evaluated and evaluated[0]["step"] == 0 else {},
        "after": _heldout(evaluated[-1]) if evaluated else {},
        "wall_clock_s": round(seconds, 3),
        "generation_s": round(sum(record.get("generation_s", 0.0) for record in records), 3),
        "tool_s": round(sum(record.get("tool_s", 0.0) for record in records), 3),
        "training_s": round(sum(record.get("training_s", 0.0) for record in records), 3),
        **facts,
    }


def _heldout(record: Mapping[str, Any]) -> dict[str, Any]:
    """The held-out figures of a record, without their prefix."""
    prefix = "heldout_"
    return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
