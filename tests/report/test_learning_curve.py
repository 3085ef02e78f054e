"""The learning curve shows the records it is given."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from ctpo.report.drawing import draw_learning_curve

RECORDS = [
    {"batch": 0, "step": 0, "seconds": 0.0, "heldout_pass@1": 0.2, "heldout_stderr": 0.01},
    {"batch": 1, "step": 16, "seconds": 5.0, "reward": 0.3},
    {"batch": 2, "step": 32, "seconds": 9.0, "reward": 0.6, "heldout_pass@1": 0.7, "heldout_stderr": 0.01},
]
SUMMARY = {"objective": "ctpo", "seed": 1, "before": {"pass@1": 0.2}, "after": {"pass@1": 0.7}}


def draw(run: Path, records: list[dict[str, object]]) -> bytes:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    path = draw_learning_curve(run)
    with Image.open(path) as image:
        assert image.size == (1024, 640)
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20
        return image.convert("RGB").tobytes()


def test_curve_follows_the_records(tmp_path: Path) -> None:
    first = draw(tmp_path / "a", RECORDS)
    assert draw(tmp_path / "b", RECORDS) == first
    lower = [*RECORDS[:2], {**RECORDS[2], "heldout_pass@1": 0.5}]
    assert draw(tmp_path / "c", lower) != first


def test_a_run_without_training_reward_is_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "a", [RECORDS[0], {**RECORDS[2], "reward": None}])
