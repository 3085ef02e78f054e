"""The lines of `ctpo train`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ctpo.cli.display import Display
from ctpo.training.records.events import RunPlan


@pytest.mark.parametrize(
    ("start_batch", "batch_s", "left"),
    [(0, 60.0, "5:00"), (2, 600.0, "30:00")],
    ids=["a whole batch", "the rest of a batch of which an earlier process did a part"],
)
def test_the_time_left_counts_whole_batches(
    start_batch: int, batch_s: float, left: str, tmp_path: Path
) -> None:
    text = io.StringIO()
    display = Display(Console(file=text, width=200), None)
    display.started(
        RunPlan(
            output=tmp_path,
            task="arithmetic",
            model="embedded",
            objective="ctpo",
            seed=0,
            rollout_batches=6,
            updates_per_batch=4,
            responses_per_batch=32,
            parameters=1,
            start_batch=start_batch,
        )
    )
    display.recorded({"batch": start_batch + 1, "step": 4, "seconds": 700.0, "batch_s": batch_s})
    assert text.getvalue().splitlines()[-1].split()[-1] == left
