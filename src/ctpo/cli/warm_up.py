"""`ctpo warm-up`: worked solutions in, a model that calls the tool and names its answers out."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ctpo.cli.quiet import is_main_process, quieten
from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.runs.checkpoints import is_checkpoint
from ctpo.runs.command import KEY, WARM_UP, check_command
from ctpo.runs.directory import RunDirectory
from ctpo.training.config.launch import check_launch
from ctpo.training.config.recipe import merge, parse_overrides, read_recipe
from ctpo.training.config.trust import check_recipe
from ctpo.training.config.warm_up import SETTINGS, WarmUpRecipe, check, resolved, resumed_keys

_DESCRIPTION: Final = """\
Teach a model the form of a task from worked solutions, before `ctpo train`.

A solution becomes a response with tool calls in the model's own form, the tool's real outputs and a last line that
names the answer. Solutions whose program does not give the reference answer are left out and counted. The model learns
to write these responses; prompts and the tool's outputs are not part of the loss (docs/how-to/warm_up.md).

A recipe is a YAML file of `key: value`. Words `key=value` on the command line override it.
"""
_EPILOG: Final = """\
examples:
  ctpo warm-up my.yaml --check                      make the rows, count them, show one
  ctpo warm-up my.yaml output_dir=runs/warm
  ctpo warm-up --resume runs/warm                   go on after an interrupt
  ctpo train mine.yaml model=runs/warm/model        train the result further
A recipe whose task is a Python file needs --trust, as recipes/smollm2-gsm8k/warm_up.yaml does.

Ctrl-C finishes the current step, saves a checkpoint and prints how to resume. A second Ctrl-C stops at once.
"""
_INTERRUPTED: Final = 130
_LINES: Final = 40
"""Lines that a run prints, beside those with a held-out loss."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo warm-up`."""
    own = dataclasses.fields(WarmUpRecipe)
    width = max(len(each.name) for each in own)
    keys = "\n".join(f"  {each.name:<{width}}  {each.metadata['help']} [{each.default}]" for each in own)
    parser.description = (
        f"{_DESCRIPTION}\nrecipe keys:\n{keys}\n\nsettings of TRL's SFTConfig: {', '.join(SETTINGS)}"
    )
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("words", nargs="*", metavar="RECIPE.yaml | key=value", help="recipe file and overrides")
    add("--resume", type=Path, metavar="RUN", help="continue this run from its last good checkpoint")
    add("--check", action="store_true", help="make the rows, count them, show the first, and stop")
    add("--show", action="store_true", help="print the resolved recipe and stop")
    add("--trust", action="store_true", help="run the code that the recipe or the run's directory names")


def run(args: argparse.Namespace) -> int:
    """Warm up a model, or only make its rows."""
    require(
        "ctpo warm-up", "train", "transformers", "trl", "accelerate", "datasets", "pydantic", "yaml", "rich"
    )
    check_launch()
    keys = _collect(args.words, args.resume, trust=args.trust)
    whole = keys if args.resume is None else _resumed(args.resume, keys, trust=args.trust)
    check(whole)
    if args.show:
        import yaml

        print(yaml.safe_dump(resolved(whole), sort_keys=False, allow_unicode=True), end="")
        return 0
    from ctpo.cli.display import open_console

    console = open_console(shown=is_main_process())
    display = _Display(console)
    display.stage("loading torch, transformers and TRL")
    quieten()
    from ctpo.training.warm_up.run import preview, warm_up

    if args.check:
        shown = preview(whole)
        display.prepared(len(shown.rows.kept), shown.rows.dropped, shown.rows.first_dropped)
        console.print(f"{shown.prompt}{shown.first.text}", markup=False, highlight=False)
        return 0
    outcome = warm_up(keys, listener=display, resume=args.resume, started=args.started, trust=args.trust)
    display.finished(outcome)
    return 0 if outcome.finished else _INTERRUPTED


def _collect(words: list[str], resume: Path | None, *, trust: bool) -> dict[str, Any]:
    """The keys that the words give: a recipe with overrides, or only overrides for a run to resume."""
    recipes = [word for word in words if "=" not in word or os.path.isfile(word)]
    overrides = parse_overrides(word for word in words if word not in recipes)
    if resume is not None:
        if recipes:
            raise UserError(
                f"recipe {recipes[0]} and --resume {resume} are both given; a run keeps its own recipe"
            )
        return overrides
    if len(recipes) > 1:
        raise UserError(
            f"{len(recipes)} recipes are given ({' '.join(recipes)}); give one, and overrides as key=value"
        )
    if not recipes:
        return overrides
    recipe = read_recipe(Path(recipes[0]))
    if "objective" in recipe or KEY in recipe:
        check_command(recipe, Path(recipes[0]), WARM_UP)
    keys = merge(recipe, overrides)
    if not trust:
        check_recipe(keys, overrides, Path(recipes[0]))
    return keys


def _resumed(resume: Path, overrides: dict[str, Any], *, trust: bool) -> dict[str, Any]:
    """The keys of a run with overrides."""
    run = RunDirectory(resume.parent if is_checkpoint(resume) else resume)
    keys = resumed_keys(run, overrides)
    if not trust:
        check_recipe(keys, overrides, run.config)
    return keys


class _Display:
    """Prints what a warm-up reports."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._steps, self._done, self._started = 0, 0, 0.0

    def stage(self, what: str) -> None:
        self._console.print(f"[dim]{what} …[/dim]")

    def notice(self, what: str) -> None:
        self._console.print(what, markup=False, highlight=False, style="yellow")

    def prepared(self, kept: int, dropped: Mapping[str, int], first: Mapping[str, str]) -> None:
        self._console.print(f"{kept} rows", highlight=False)
        for why, count in dropped.items():
            self._console.print(
                f"  {count} left out: {why} (first: {first.get(why, '')})", markup=False, highlight=False
            )

    def started(self, output: Path, steps: int, done: int, parameters: int) -> None:
        self._steps, self._done, self._started = steps, done, time.perf_counter()
        after = f", {done} are done" if done else ""
        self._console.print(
            f"{steps} steps{after}; {parameters:,} parameters; records in {output}", highlight=False
        )
        self._console.print("[bold]  step    loss  held-out   rate     tokens    time    left[/bold]")

    def recorded(self, record: Mapping[str, Any]) -> None:
        step, seconds = record["step"], record["seconds"]
        if "heldout_loss" not in record and step % max(1, self._steps // _LINES):
            return
        from ctpo.cli.display import clock, figure

        elapsed, taken = time.perf_counter() - self._started, step - self._done
        left = clock(elapsed / taken * (self._steps - step)) if taken > 0 else ""
        tokens = record.get("tokens", "")
        self._console.print(
            f"{step:6}  {figure(record, 'loss', '{:.4f}'):>6}  {figure(record, 'heldout_loss', '{:.4f}'):>8}  "
            f"{figure(record, 'learning_rate', '{:.1e}'):>7}  {tokens:>6}  {clock(seconds):>7} {left:>7}",
            highlight=False,
            style="cyan" if "heldout_loss" in record else "",
        )

    def finished(self, outcome: Any) -> None:
        """Print the result, or how to go on."""
        from ctpo.cli.display import trust

        path = shlex.quote(str(outcome.run.path))
        run = f"{path}{trust(outcome.run)}"
        if not outcome.finished:
            self._console.print(
                f"\nInterrupted; a checkpoint is saved. Continue with:\n  ctpo warm-up --resume {run}",
                markup=False,
                highlight=False,
            )
        elif outcome.summary is not None:
            self._console.print(
                f"Saved in {path}: model/ metrics.jsonl summary.json samples.jsonl config.yaml\nNext:\n"
                f"  ctpo eval {run}\n  ctpo train RECIPE.yaml model={path}/model",
                markup=False,
                highlight=False,
            )
