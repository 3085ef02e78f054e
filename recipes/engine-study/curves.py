"""The learning curves of this folder's study by batch, as tables in Markdown: python curves.py ENGINE-STUDY

Each figure is a mean over seeds ± its standard error. The difference is paired by seed, with Student's 95 % interval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scipy.stats import t as student

from ctpo.runs.directory import RunDirectory
from ctpo.runs.means import mean

ARMS = ("ours", "verl")
OF_UPDATES = {"clipped": "clip_fraction", "advantage": "gradient_signal"}
"""Figures of the profiles' updates. They are of tokens with an advantage: our trainer leaves the others out of the
forward pass and so out of its averages, and verl does not."""
FIGURES = (
    "reward",
    "clipped",
    "advantage",
    "log_ratio_std",
    "ess",
    "gradient_norm_mean",
    "response_tokens",
    "tool_calls_per_response",
)


def curves(study: Path, arm: str, name: str) -> dict[int, list[float]]:
    """A figure by seed, one value per rollout batch."""
    runs = sorted((study / "runs" / "all" / arm / "untuned").glob("seed-*/run"))
    return {
        int(run.parent.name.removeprefix("seed-")): _figures(RunDirectory(run), name)
        for run in runs
        if (run / "summary.json").is_file()
    }


def _figures(run: RunDirectory, name: str) -> list[float]:
    if name not in OF_UPDATES:
        return [float(record[name]) for record in run.records() if record["batch"] > 0]
    lines = [json.loads(line)["updates"] for line in run.profile.read_text(encoding="utf-8").splitlines()]
    return [
        sum(value * count for value, count in zip(line[OF_UPDATES[name]], line["count"], strict=True))
        / sum(line["count"])
        for line in lines
    ]


def main(study: Path) -> None:
    """Print a table per figure."""
    for name in FIGURES:
        ours, verl = (curves(study, arm, name) for arm in ARMS)
        seeds = sorted(ours.keys() & verl.keys())
        width = student.ppf(0.975, len(seeds) - 1)
        print(
            f"\n{name}, seeds {seeds}\n\n| batch | ours | verl | verl − ours | 95 % interval |\n|---|---|---|---|---|"
        )
        batches = [*range(len(ours[seeds[0]])), slice(None)]
        for batch in batches:
            pairs = [[_value(curve[seed], batch) for seed in seeds] for curve in (ours, verl)]
            difference = mean([b - a for a, b in zip(*pairs, strict=True)])
            means = [mean(values) for values in pairs]
            half = width * (difference.stderr or 0.0)
            cells = [f"{each.value:.3f} ± {each.stderr or 0.0:.3f}" for each in means]
            label = "all" if isinstance(batch, slice) else str(batch + 1)
            ends = f"{difference.value - half:+.3f} to {difference.value + half:+.3f}"
            print(f"| {label} | {' | '.join(cells)} | {difference.value:+.3f} | {ends} |")


def _value(curve: list[float], batch: int | slice) -> float:
    """The value of a batch, or the mean of all."""
    return sum(curve) / len(curve) if isinstance(batch, slice) else curve[batch]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
