"""Small runs with known figures, written as `ctpo train` writes them."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

EDGES = [1, 2, 4, 8, 16]
CELLS = [-(2.0**k) for k in range(2, -9, -1)] + [2.0**k for k in range(-8, 3)]
BATCHES = 4
ENVIRONMENT = {
    "ctpo": "0.1",
    "python": "3.12",
    "packages": {"torch": "2.13"},
    "cores": 2,
    "command": ["ctpo", "train"],
}


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tokens(batch: int, seed: int) -> list[tuple[int, float]]:
    """Return (position, log ratio) of every token of a batch, from random walks."""
    rng = random.Random(100 * seed + batch)
    rows = []
    for _ in range(40):
        walked = 0.0
        for position in range(1, 17):
            walked += rng.gauss(0, 0.2 / batch)
            rows.append((position, walked))
    return rows


def profile(batch: int, seed: int) -> dict[str, Any]:
    """Return a line of `profile.jsonl` as docs/reference/diagnostics.md defines it, with CTPO's default band."""
    bins: list[list[tuple[int, float]]] = [[] for _ in EDGES]
    for position, value in tokens(batch, seed):
        bins[next(i for i, edge in enumerate(EDGES) if position <= edge)].append((position, value))
    values = [[value for _, value in each] for each in bins]
    means = [sum(each) / len(each) for each in values]
    stds = [
        math.sqrt(sum((v - m) ** 2 for v in each) / len(each)) for each, m in zip(values, means, strict=True)
    ]
    at = [sum(p for p, _ in each) / len(each) for each in bins]
    ends = [-math.inf, *CELLS, math.inf]
    everything = [value for each in values for value in each]
    return {
        "batch": batch, "step": 4 * batch, "edge": EDGES, "count": [len(each) for each in bins], "position_mean": at,
        "high": [sum(v > 0.05 * math.sqrt(p) for p, v in each) for each in bins],
        "low": [sum(v < -0.025 * math.sqrt(p) for p, v in each) for each in bins],
        "dual": [0] * len(bins), "log_ratio_mean": means, "log_ratio_std": stds, "weight_mean": means,
        "weight_std": stds, "gradient_removed": [0.5] * len(bins), "spread_scale": 0.2 / batch, "spread_power": 0.5,
        "spread_power_stderr": 0.01,
        "critic_explained_variance": [batch / 10, None, *[0.5] * (len(bins) - 2)],
        "histogram": {
            "edge": CELLS, "count": [sum(a < v <= b for v in everything) for a, b in itertools.pairwise(ends)],
        },
        "band": {
            "low": [-0.025 * math.sqrt(p) for p in at], "high": [0.05 * math.sqrt(p) for p in at], "dual": None,
        },
    }  # fmt: skip


def records(final: float) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`. Held-out accuracy and reward rise together from 0.2 to `final`."""
    rows: list[dict[str, Any]] = [heldout(0, 0.2)]
    for batch in range(1, BATCHES + 1):
        value = 0.2 + (final - 0.2) * batch / BATCHES
        rows.append(
            {
                **heldout(batch, value), "reward": value, "clip_fraction": 0.3 / batch, "entropy": 0.1, "ess": 0.9,
                "clip_fraction_high": 0.2 / batch, "clip_fraction_low": 0.1 / batch, "tokens": 640.0, "batch_s": 2.0,
                "tool_calls": 80, "tool_calls_per_response": 2.0, "tool_failures": 4, "tool_s": 0.5,
                "tokens_per_s": 320.0, "skipped_updates": 0.0,
            }
        )  # fmt: skip
    return rows


def heldout(batch: int, value: float) -> dict[str, Any]:
    return {
        "batch": batch, "step": 4 * batch, "seconds": 2.0 * batch, "heldout_pass@1": value, "heldout_stderr": 0.01,
        "heldout_problems": 100,
    }  # fmt: skip


TRANSCRIPT: dict[str, Any] = {
    "id": "a-1", "prompt": "1+2=", "answer": "3", "completion": "<py>print(1+2)</py><out>3</out>=3", "correct": True,
    "finished": True, "calls": [{"program": "print(1+2)", "status": "ok", "output": "<out>3</out>"}],
}  # fmt: skip
SAMPLE: dict[str, Any] = {
    "prompt": "1+2=", "advantage": 1.5, "reward": 1.0, "tokens": ["so", " ", "3", "<out>", "=", "3"],
    "model": [1, 1, 1, 0, 1, 1], "log_ratio": [0.1, 0.2, -0.3, None, 0.0, 0.5],
    "log_weight": [0.1, 0.3, -0.1, None, -0.2, 0.5], "clip": [1, 1, 0, 0, -1, 2], "position": [1, 2, 3, 3, 4, 5],
}  # fmt: skip


def write_run(
    path: Path, *, objective: str = "ctpo", seed: int = 0, final: float = 0.8, **config: Any
) -> Path:
    """Write a complete run, and return its directory."""
    path.mkdir(parents=True)
    recipe = {
        "task": "arithmetic",
        "objective": objective,
        "seed": seed,
        "learning_rate": 3e-4,
        "output_dir": str(path),
        **config,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    write_lines(path / "metrics.jsonl", records(final))
    write_lines(path / "profile.jsonl", [profile(batch, seed) for batch in range(1, BATCHES + 1)])
    write_lines(path / "transcripts" / "batch-0004.jsonl", [TRANSCRIPT, {**TRANSCRIPT, "correct": False}])
    write_lines(path / "samples" / "batch-0004.jsonl", [SAMPLE, SAMPLE])
    summary = {
        "objective": objective, "seed": seed, "before": {"pass@1": 0.2, "stderr": 0.04, "problems": 100},
        "after": {"pass@1": final, "stderr": 0.04, "problems": 100}, "wall_clock_s": 9.0,
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


def write_comparison(path: Path) -> Path:
    """Write a comparison of two regimes × two objectives × three seeds, with results and tuning runs."""
    rows, tests = [], []
    for regime, loss in (("16 updates", 0.0), ("64 updates", 0.1)):
        for arm, base in (("ctpo", 0.9), ("grpo", 0.7)):
            for seed in (0, 1, 2):
                folder = path / "runs" / regime / arm / "learning_rate=0.0003" / f"seed-{seed}" / "run"
                write_run(folder, objective=arm, seed=seed, final=base - loss + 0.01 * seed)
            for seed, setting in ((9, 3e-4), (0, 1e-4)):  # a tuning seed, and a setting that was not chosen
                folder = path / "runs" / regime / arm / f"learning_rate={setting:g}" / f"seed-{seed}" / "run"
                write_run(folder, objective=arm, seed=seed, learning_rate=setting)
            means = {
                "final": {"mean": base - loss + 0.01, "stderr": 0.0058},
                "auc": {"mean": 0.5, "stderr": 0.01},
                "collapsed": 0,
            }
            rows.append({"regime": regime, "arm": arm, "setting": {"learning_rate": 3e-4}, "n": 3, **means})
        tests.append(
            {
                "regime": regime, "score": "final", "one": "ctpo", "other": "grpo", "difference": 0.2, "stderr": 0.01,
                "n": 3, "t": 20.0, "p": 0.0025, "p_holm": 0.005,
            }
        )  # fmt: skip
    results = {"objectives": rows, "tests": tests, "test_seeds": [0, 1, 2], "failures": []}
    (path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return path
