"""Measures what diagnostics cost: their CPU-seconds as a share of a run, and that run against one without them.

    python benchmarks/diagnostics.py                               the embedded recipe; counts 4 rollout batches
    python benchmarks/diagnostics.py --rounds 5 objective=grpo     5 runs with and 5 without, in turn; medians
    python benchmarks/diagnostics.py recipes/smollm2-tool/train.yaml rollout_batches=1 ...

The share is exact to the resolution of the clock. The ratio of whole runs also contains what the calls do to caches,
and the noise of the machine. Both kinds of runs sample the same rollouts. Nothing is needed beyond what training needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("starting", "observe", "updated", "null_sizes", "close", "figures", "generated", "samples")


def main() -> None:
    args = _arguments()
    if args.child:
        print("RESULT " + json.dumps(_run(args.words)))
        return
    results: dict[str, list[dict[str, float]]] = {"true": [], "false": []}
    for _ in range(args.rounds):
        for value, runs in results.items():
            runs.append(_in_a_process([*args.words, f"diagnostics={value}"]))
            print(f"diagnostics={value:5}", {name: round(v, 4) for name, v in runs[-1].items()}, flush=True)
    median = {value: statistics.median(run["training_s"] for run in runs) for value, runs in results.items()}
    shares = {
        name: statistics.median(run[name] for run in results["true"])
        for name in ("of_training", "of_everything")
    }
    print(
        f"share of CPU-seconds: {shares['of_training']:.3%} of training, {shares['of_everything']:.3%} with rollouts"
    )
    print(f"training CPU-seconds with / without, medians: {median['true'] / median['false']:.4f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="a recipe and key=value, as `ctpo train` takes them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(words: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words], capture_output=True, text=True, check=False
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        sys.exit(f"{words} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(results[-1].removeprefix("RESULT "))
    return figures


def _run(words: list[str]) -> dict[str, float]:
    """CPU-seconds of the rollout batches, without the first if there are more, since it pays for one-time work."""
    from ctpo.cli.quiet import quieten
    from ctpo.runs.directory import RunDirectory
    from ctpo.training.config.recipe import embedded_recipe, merge, parse_overrides, read_recipe
    from ctpo.training.diagnostics.watch import Diagnostics
    from ctpo.training.run.heldout import HeldOut
    from ctpo.training.run.train import train
    from ctpo.training.step.trainer import CTPOTrainer

    quieten()
    spent = dict.fromkeys(("diagnostics", "generation", "evaluation"), 0.0)
    for owner, names, what in (
        (Diagnostics, CALLS, "diagnostics"),
        (CTPOTrainer, ("_generate_and_score_completions",), "generation"),
        (HeldOut, ("__call__",), "evaluation"),
    ):
        for name in names:
            setattr(owner, name, _timed(getattr(owner, name), spent, what))
    marks: list[dict[str, float]] = []
    append = RunDirectory.append

    def marked(*args: Any, **kwargs: Any) -> None:
        append(*args, **kwargs)
        marks.append({**spent, "everything": time.process_time()})

    RunDirectory.append = marked  # type: ignore[method-assign]
    recipes = [word for word in words if "=" not in word]
    keys = read_recipe(Path(recipes[0])) if recipes else {**embedded_recipe(), "rollout_batches": 5}
    quick = {"eval_every": 0, "eval_problems": 1, "save_strategy": "no", "report_to": "none"}
    with tempfile.TemporaryDirectory() as folder:
        given = parse_overrides(word for word in words if "=" in word)
        train(merge({**keys, **quick, "output_dir": f"{folder}/run"}, given))
    first = marks[1] if len(marks) > 2 else marks[0]
    took = {name: marks[-1][name] - first[name] for name in first}
    everything = took["everything"] - took["evaluation"]
    training = everything - took["generation"]
    return {
        "training_s": training,
        "everything_s": everything,
        "diagnostics_s": took["diagnostics"],
        "of_training": took["diagnostics"] / training,
        "of_everything": took["diagnostics"] / everything,
    }


def _timed(function: Callable[..., Any], spent: dict[str, float], what: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started, already = time.process_time(), spent[what]
        try:
            return function(*args, **kwargs)
        finally:  # a call within a call counts only once
            spent[what] = already + time.process_time() - started

    return timed


if __name__ == "__main__":
    main()
