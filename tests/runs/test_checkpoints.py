"""Which checkpoints of a run stay on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctpo.runs.checkpoints import rotate


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, {2, 4, 6, 8}),
        (2, None, {6, 8}),
        (1, None, {8}),
        (2, "checkpoint-2", {2, 8}),
        (1, "checkpoint-2", {2, 8}),
        (1, "checkpoint-8", {8}),
        (3, "checkpoint-4", {4, 6, 8}),
        (9, "checkpoint-2", {2, 4, 6, 8}),
        (2, "checkpoint-5", {6, 8}),
    ],
)
def test_the_newest_and_the_best_are_kept(
    limit: int | None, best: str | None, kept: set[int], tmp_path: Path
) -> None:
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(tmp_path, limit, best)
    assert {each.name for each in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in kept}
