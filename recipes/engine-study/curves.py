"""The learning curves of this folder's study by batch, as tables in Markdown: python curves.py ENGINE-STUDY

Each figure is a mean over seeds ± its standard error. The difference is paired by seed, with Student's 95 % interval.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scipy.stats import t as student

from ctpo.runs.directory import RunDirectory
from ctpo.runs.means import mean

ARMS = ("ours", "verl")
FIGURES = (
    "reward",
    "clip_fraction",
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
        int(run.parent.name.removeprefix("seed-")): [
            float(record[name]) for record in RunDirectory(run).records() if record["batch"] > 0
        ]
        for run in runs
        if (run / "summary.json").is_file()
    }


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
