"""`ctpo compare`: objectives against each other, tuned alike, over seeds."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ctpo.cli.quiet import sole_use
from ctpo.cli.table import table
from ctpo.errors import UserError, one_line
from ctpo.extras import require
from ctpo.report.tables.words import mean_and_error, probability, settings_in_words
from ctpo.runs.means import Mean
from ctpo.runs.scores import score_name

if TYPE_CHECKING:
    from ctpo.lab.comparison.plan import Cell, Plan
    from ctpo.lab.comparison.runner import Budget, Failure, Runner

_DESCRIPTION: Final = """\
Compare objectives: a matrix of objectives x regimes x settings x seeds, run side by side as processes.

In each regime every objective is tuned over the same number of settings, on tuning seeds. The best setting then runs
on test seeds, which must be others. Differences are paired by seed and tested with Student's t. Holm's correction
counts every test of the comparison.

What is done is not done again. The same command continues after an interrupt, and runs only what was added to the
file. With --scores this also holds on another machine.
"""
_EPILOG: Final = """\
a comparison file:
  recipe: null                # the embedded one, or the path of a YAML recipe
  common: {rollout_batches: 16}
  objectives:                 # the first is what the others are compared with
    ctpo: {tune: {objective_kwargs.log_high: [0.05, 0.4]}}
    grpo: {tune: {objective_kwargs.ratio_high: [0.2, 0.6]}}
    # or one objective on two engines: {ours: {objective: ctpo}, verl: {objective: ctpo, engine: verl}}
  regimes:
    16 updates: {}
    64 updates: {num_iterations: 4}
    lag 2: {behaviour_lag: 2}
    high rate: {like: 16 updates, learning_rate: 1.0e-3}   # takes the settings tuned there, except what is set here
  tune: {learning_rate: [1.0e-4, 3.0e-4]}
  seeds: {tune: [100, 101], test: [0, 1, 2, 3, 4]}
  select_by: auc              # or final
  compare:                    # the tests that count, all corrected; default: the first with every other
    - [ctpo, grpo]            # in every regime, by both scores
    - {pair: [grpo, ctpo], regimes: [lag 2], scores: [final]}
  secondary: []               # tests of the same form, uncorrected

  ctpo compare study.yaml --output study --cores 8 --memory-gb 32
"""


_MEANS: Final = ("regime", "objective", "setting", "seeds", "final pass@1", "AUC", "collapsed")
_TESTS: Final = ("regime", "score", "difference", "mean ± s.e.", "n", "p", "p (Holm)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo compare`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add = parser.add_argument
    add("plan", type=Path, metavar="COMPARISON.yaml")
    add("--output", type=Path, metavar="DIR", help="where everything goes (default: the file's name)")
    add(
        "--cores",
        type=int,
        default=_allowed_cores(),
        metavar="N",
        help="cores for all runs together (default: all)",
    )
    add(
        "--memory-gb",
        type=float,
        metavar="GB",
        help="memory for all runs together (default: 80 %% of what is free)",
    )
    add(
        "--scores",
        type=Path,
        metavar="FILE.csv",
        help="a small file of every run's figures; runs are added as they end, and those in it are not run again",
    )
    add("--status", action="store_true", help="run nothing; report what is there")
    add("--json", action="store_true", help="print results.json instead of tables")
    add(
        "--trust",
        action="store_true",
        help="run the code and obey the unsafe settings that the file and its recipe name",
    )


def run(args: argparse.Namespace) -> int:
    """Run a comparison, or only report it."""
    require("ctpo compare", "compare", "psutil", "transformers", "trl", "pydantic", "yaml", "rich")
    from ctpo.lab.comparison.compare import choose, results
    from ctpo.lab.comparison.plan import read_plan
    from ctpo.lab.comparison.runner import Runner
    from ctpo.lab.comparison.scores_file import ScoresFile
    from ctpo.runs.atomic import write_json, write_text
    from ctpo.runs.directory import RunDirectory

    if args.plan.is_dir():
        raise UserError(
            f"{args.plan} is a directory; give a comparison file. `ctpo report {args.plan} …` shows runs side by side"
        )
    plan = read_plan(args.plan)
    _check_recipes(plan, None if args.trust else args.plan, only_reported=args.status)
    output = args.output or args.plan.with_suffix("")
    if RunDirectory(output).holds_a_run:
        raise UserError(f"--output {output} holds a run; choose a directory of the comparison's own")
    runner = Runner(output, _budget(args), ScoresFile(args.scores) if args.scores else None, trust=args.trust)
    failures: list[Failure] = []
    if not args.status:
        with _terminated_as_interrupted():
            failures = _run(plan, runner)
    outcome = results(plan, runner, choose(plan, runner), failures)
    if output.is_dir():
        write_json(output / "results.json", outcome)
        write_text(output / "results.md", _markdown(outcome))
    if args.json:
        print(json.dumps(outcome, indent=2))
    else:
        _print(outcome)
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

    from ctpo.lab.comparison.runner import Budget

    free_mb = 0.8 * psutil.virtual_memory().available / 1e6
    return Budget(cores=args.cores, memory_mb=int(args.memory_gb * 1000 if args.memory_gb else free_mb))


def _check_recipes(plan: Plan, untrusted: Path | None, *, only_reported: bool) -> None:
    """Check the recipe of every combination now, since a mistake would otherwise stop the comparison hours later.

    The quick check goes first over all of them. The full one, which imports torch and TRL, is for what will run.
    """
    from ctpo.engines.choice import LOCAL, split_engine
    from ctpo.lab.comparison.plan import cell
    from ctpo.training.config.settings import build, check
    from ctpo.training.config.trust import check_recipe

    combinations = [
        {"output_dir": "unnamed", **cell(plan, regime, arm, setting, 0).keys}
        for regime in plan.regimes
        for arm in plan.arms
        for setting in arm.grid
    ]
    for keys in combinations:
        if untrusted is not None:
            check_recipe(keys, {}, untrusted, own="")
        check(split_engine(keys)[1])
    for keys in [] if only_reported else combinations:
        choice, own = split_engine(keys)
        if choice.name == LOCAL:
            build(own)
            continue
        from ctpo.engines.verl.run import check as check_for_verl

        check_for_verl(keys)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that no run is left behind to compete with those of the next attempt.

    Outside of the main thread, where Python handles no signals, SIGTERM keeps its effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(plan: Plan, runner: Runner) -> list[Failure]:
    from ctpo.lab.comparison.compare import choose, final_cells, tuning_cells

    failures = _stage(runner, "tuning", tuning_cells(plan))
    choices = choose(plan, runner)
    if any(each.scores and set(each.scores) == {None} for each in choices) and plan.tuned:
        return failures  # an objective has no tuned run that ended, so no setting can be chosen for it
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

        def ended(cell: Cell, succeeded: bool) -> None:
            progress.advance(task)
            if not succeeded:
                progress.console.print(f"failed: {cell.folder}", highlight=False)

        runner.on_end = ended
        return runner.run(cells)


def _print(outcome: Mapping[str, Any]) -> None:
    """Print both tables, how they came about, and the runs that failed."""
    for title, head, rows in (
        ("means over the test seeds ± standard error", _head(outcome), _means(outcome)),
        ("paired over seeds, two-sided t-test", _TESTS, _tests(outcome)),
    ):
        if rows:
            print(f"{table(head, rows, title=title, left=3)}\n")
    print(_tuning(outcome))
    for failure in outcome["failures"]:
        print(one_line(f"failed: {failure['run']}: {failure['reason']}"))


def _head(outcome: Mapping[str, Any]) -> tuple[str, ...]:
    """The headings of the means, by what the held-out scores are."""
    final = f"final {score_name(outcome['objectives'])}"
    return tuple(final if name == "final pass@1" else name for name in _MEANS)


def _markdown(outcome: Mapping[str, Any]) -> str:
    """The same tables as a Markdown page."""
    parts = ["# Comparison", _tuning(outcome)]
    for head, rows in ((_head(outcome), _means(outcome)), (_TESTS, _tests(outcome))):
        lines = [head, ["---"] * len(head), *rows]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _tuning(outcome: Mapping[str, Any]) -> str:
    """How the objectives were tuned, and what the correction counts."""
    tuning = outcome["tuning"]
    tests = sum(each["primary"] and each["p"] is not None for each in outcome["tests"])
    if not tuning["seeds"]:
        text = "Nothing was tuned."
    else:
        text = (
            f"Every objective was tuned alike: {tuning['settings_each']} settings x {len(tuning['seeds'])} seeds in "
            f"each regime, chosen by mean {tuning['select_by']}."
        )
    return f"{text} Holm's correction counts {tests} tests; secondary ones are uncorrected."


def _means(outcome: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            each["regime"],
            each["arm"],
            settings_in_words(each["setting"]),
            str(each["n"]),
            _mean(each["final"]),
            _mean(each["auc"]),
            f"{each['collapsed']}/{each['n']}",
        )
        for each in outcome["objectives"]
    ]


def _tests(outcome: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            each["regime"],
            each["score"],
            f"{each['one']} − {each['other']}",
            _mean({"mean": each["difference"], "stderr": each["stderr"]}, sign="+"),
            str(each["n"]),
            probability(each["p"]),
            probability(each["p_holm"]) if each["primary"] else "secondary",
        )
        for each in outcome["tests"]
    ]


def _mean(estimate: Mapping[str, Any] | None, sign: str = "") -> str:
    if estimate is None:
        return "no run"
    return mean_and_error(Mean(value=estimate["mean"], stderr=estimate["stderr"], n=0), sign)
