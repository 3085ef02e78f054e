"""The learning curve of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WIDTH_IN, _HEIGHT_IN, _DPI = 7.0, 4.0, 160
_BLUE, _GREY = "#2563eb", "#9ca3af"


def draw_learning_curve(run: Path) -> Path:
    """Draw held-out accuracy (with standard errors) and training reward against wall-clock; return the PNG's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _training_reward(axes, records)
    _held_out(axes, records)
    axes.set_xlabel("wall-clock, seconds")
    axes.set_ylabel("share of right answers")
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    before, after = summary["before"]["pass@1"], summary["after"]["pass@1"]
    axes.set_title(
        f"{summary['objective']}, seed {summary['seed']}: held-out pass@1 {before:.2f} → {after:.2f}",
        loc="left",
    )
    axes.legend(frameon=False, loc="lower right")
    path = run / "curve.png"
    figure.savefig(path)
    return path


def _training_reward(axes: Any, records: list[dict[str, Any]]) -> None:
    rows = [(record["seconds"], record["reward"]) for record in records if record.get("reward") is not None]
    if rows:
        axes.plot(
            *zip(*rows, strict=True), color=_GREY, linewidth=1.2, label="training reward, a rollout batch"
        )


def _held_out(axes: Any, records: list[dict[str, Any]]) -> None:
    rows = [
        (record["seconds"], record["heldout_pass@1"], record["heldout_stderr"])
        for record in records
        if "heldout_pass@1" in record
    ]
    seconds, accuracy, stderr = zip(*rows, strict=True)
    axes.errorbar(
        seconds, accuracy, yerr=stderr, color=_BLUE, marker="o", markersize=4, capsize=2, linewidth=1.8,
        label="held-out pass@1 ± standard error",
    )  # fmt: skip
