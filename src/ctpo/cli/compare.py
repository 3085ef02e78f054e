"""`ctpo compare`: objectives against each other, tuned alike, over seeds."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctpo.cli.compare_tables import print_results, results_markdown
from ctpo.cli.sole_use import sole_use
from ctpo.errors import UserError
from ctpo.lab.comparison.book import Book
from ctpo.lab.comparison.compare import choose, final_cells, results, tuning_cells
from ctpo.lab.comparison.plan import Cell, Plan, read_plan
from ctpo.lab.comparison.runner import Budget, Failure, Runner

_DESCRIPTION = """\
Compare objectives: a matrix of objectives x regimes x settings x seeds, run side by side as processes.

Every objective is tuned over the same number of settings on tuning seeds, by regime; the best setting then runs on
test seeds, which must be others. Differences are paired by seed and tested with Student's t; Holm's correction counts
every test of the comparison. What is done is not done again: the same command continues after an interrupt, and runs
only what was added to the file; with --scores, also on another machine.
"""
_EPILOG = """\
a comparison file:
  recipe: null                # the embedded one, or the path of a YAML recipe
  common: {rollout_batches: 16}
  objectives:                 # the first is what the others are compared with
    ctpo: {tune: {objective_kwargs.high: [0.05, 0.4]}}
    grpo: {tune: {objective_kwargs.high: [0.2, 0.6]}}
  regimes:
    16 updates: {}
    64 updates: {num_iterations: 4}
    lag 2: {behaviour_lag: 2}
    high rate: {like: 16 updates, learning_rate: 1.0e-3}   # tuned there, but for what is set here
  tune: {learning_rate: [1.0e-4, 3.0e-4]}
  seeds: {tune: [100, 101], test: [0, 1, 2, 3, 4]}
  select_by: auc              # or final
  compare:                    # the tests that count, all corrected; unset: the first with every other
    - [ctpo, grpo]            # in every regime, by both scores
    - {pair: [grpo, ctpo], regimes: [lag 2], scores: [final]}
  secondary: []               # the same, uncorrected

  ctpo compare study.yaml --output study --cores 8 --memory-gb 32
"""


def register(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "compare",
        help="objectives against each other, over seeds, tuned alike",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", type=Path, metavar="COMPARISON.yaml")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where everything goes (default: the file's name)"
    )
    parser.add_argument(
        "--cores", type=int, default=_allowed_cores(), metavar="N", help="of all runs together (default: all)"
    )
    parser.add_argument(
        "--memory-gb", type=float, metavar="GB", help="of all runs together (default: 80 %% of what is free)"
    )
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="FILE.csv",
        help="small file of every run's figures: added to as runs end, and what it holds is not run again",
    )
    parser.add_argument("--status", action="store_true", help="run nothing; report what is there")
    parser.add_argument("--json", action="store_true", help="print results.json instead of tables")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run, or only report, a comparison."""
    plan = read_plan(args.plan)
    _check_recipes(plan)
    output = args.output or args.plan.with_suffix("")
    runner = Runner(output, _budget(args), Book(args.scores) if args.scores else None)
    failures: list[Failure] = []
    if not args.status:
        with _terminated_as_interrupted():
            failures = _run(plan, runner)
    found = results(plan, runner, choose(plan, runner), failures)
    if output.is_dir():
        (output / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (output / "results.md").write_text(results_markdown(found), encoding="utf-8")
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print_results(found)
        print(f"a page of it, with curves and responses: ctpo report {output}")
    return 1 if failures else 0


def _allowed_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _budget(args: argparse.Namespace) -> Budget:
    if args.cores < 1:
        raise UserError(f"--cores {args.cores} is too small; use at least 1")
    if args.memory_gb is not None and not args.memory_gb > 0:
        raise UserError(f"--memory-gb {args.memory_gb} is too small; use more than 0")
    import psutil

    free_mb = 0.8 * psutil.virtual_memory().available / 1e6
    return Budget(cores=args.cores, memory_mb=int(args.memory_gb * 1000 if args.memory_gb else free_mb))


def _check_recipes(plan: Plan) -> None:
    """Every combination must be a recipe that could start: hours into a comparison is too late to find out."""
    from ctpo.lab.comparison.plan import cell
    from ctpo.training.config.settings import build

    for regime in plan.regimes:
        for arm in plan.arms:
            for setting in arm.grid:
                build({"output_dir": "unnamed", **cell(plan, regime, arm, setting, 0).keys})


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does: runs left behind would go on beside those of the next attempt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(plan: Plan, runner: Runner) -> list[Failure]:
    failures = _stage(runner, "tuning", tuning_cells(plan))
    choices = choose(plan, runner)
    if any(each.scores and set(each.scores) == {None} for each in choices) and plan.tuned:
        return failures  # an objective without one tuned run: nothing could be said of it
    return failures + _stage(runner, "test", final_cells(plan, choices))


def _stage(runner: Runner, name: str, cells: Sequence[Cell]) -> list[Failure]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not cells:
        return []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = sum(map(runner.done, cells))
    with (
        sole_use(runner.root if done < len(cells) else None),
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task(name, total=len(cells), completed=done)

        def told(cell: Cell, succeeded: bool) -> None:
            progress.advance(task)
            if not succeeded:
                progress.console.print(f"failed: {cell.folder}", highlight=False)

        runner.told = told
        return runner.run(cells)
