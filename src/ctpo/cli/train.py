"""`ctpo train`: a recipe in, a trained model and its records out."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ctpo.cli.quiet import is_main_process, quieten
from ctpo.engines.choice import VERL, engine_keys, split_engine
from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.runs.checkpoints import is_checkpoint
from ctpo.runs.command import TRAIN, check_command, resume_words
from ctpo.runs.directory import RunDirectory
from ctpo.runs.script import run_again, script_of
from ctpo.training.config.launch import check_launch
from ctpo.training.config.recipe import Recipe, embedded_recipe, merge, parse_overrides, read_recipe
from ctpo.training.config.trust import check_recipe, check_script

_DESCRIPTION: Final = """\
Train a language model by reinforcement learning.

Without a recipe, the embedded one runs: a tiny transformer that ships with the package learns to do chain sums
with a Python tool, on a CPU, in two or three minutes.

A recipe is a YAML file of `key: value`. Words `key=value` on the command line override it. A key is one of the
recipe's own (below) or any setting of CTPOConfig. CTPOConfig has the settings of TRL's GRPOConfig, and objective,
objective_kwargs, anchor and others (docs/reference/training.md).
"""

_EPILOG: Final = """\
examples:
  ctpo train                                        the embedded recipe
  ctpo train seed=1 rollout_batches=40              longer, from another seed
  ctpo train objective=gspo objective_kwargs.ratio_high=0.05
                                                    another objective, one of its settings changed
  ctpo train my.yaml output_dir=runs/mine           your recipe, your directory
  ctpo train theirs.yaml --trust                    a recipe that names code of its own, which you have read
  ctpo train --resume runs/mine                     go on after an interrupt
  ctpo train --resume runs/mine rollout_batches=60  train a finished run further
  ctpo train --resume out --trust                   the same of a Python script, which is run again
  torchrun --nproc_per_node 2 -m ctpo train per_device_train_batch_size=16
                                                    the same batch over two processes
  ctpo train --show objective=grpo                  print the resolved recipe and stop

Ctrl-C finishes the current update, saves a checkpoint and prints how to resume. A second Ctrl-C stops at once.
"""

INTERRUPTED: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo train`."""
    parser.description, parser.epilog = f"{_DESCRIPTION}\nrecipe keys:\n{_recipe_keys()}", _EPILOG
    add = parser.add_argument
    add("words", nargs="*", metavar="RECIPE.yaml | key=value", help="recipe file and overrides")
    add(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue this run from its last good checkpoint, or from RUN/checkpoint-N",
    )
    add("--show", action="store_true", help="print the resolved recipe and stop")
    add(
        "--trust",
        action="store_true",
        help="run the code and obey the unsafe settings that the recipe or the run's directory names",
    )


def run(args: argparse.Namespace) -> int:
    """Train a model, or only show the resolved recipe."""
    require(
        "ctpo train", "train", "transformers", "trl", "accelerate", "datasets", "pydantic", "yaml", "rich"
    )
    check_launch()
    keys = _collect(args.words, args.resume, trust=args.trust)
    if args.resume is not None:
        _run_script_again(args.words, args.resume, trust=args.trust)
    if args.show:
        return _show(keys if args.resume is None else _resumed(args.resume, keys, trust=args.trust))
    if _engine(keys, args.resume) == VERL:
        return _train_with_verl(keys, args)
    keys = split_engine(keys)[1]
    _check(keys, args.resume, trust=args.trust)
    from ctpo.cli.display import open_display

    with open_display(shown=is_main_process()) as display:
        display.stage("loading torch, transformers and TRL")
        quieten()
        from ctpo.report.drawing import draw_learning_curve
        from ctpo.training.records.card import add_curve
        from ctpo.training.run.train import train

        outcome = train(keys, listener=display, resume=args.resume, started=args.started, trust=args.trust)
        if outcome.summary is not None:
            draw_learning_curve(outcome.run.path)
            add_curve(outcome.run)
        display.finished(outcome)
    return 0 if outcome.finished else INTERRUPTED


def _engine(keys: Mapping[str, Any], resume: Path | None) -> str:
    """The name of the engine that these keys, or the run that is resumed, choose."""
    own = (
        {}
        if resume is None
        else RunDirectory(resume.parent if is_checkpoint(resume) else resume).read_recipe()
    )
    return split_engine({**own, **keys})[0].name


def _train_with_verl(keys: dict[str, Any], args: argparse.Namespace) -> int:
    """Train with verl on Ray."""
    if args.resume is None:
        _check(split_engine(keys)[1], None, trust=args.trust)
    from ctpo.cli.display import open_display

    with open_display(apart=True) as display:
        display.stage("loading torch, transformers and TRL")
        quieten()
        from ctpo.engines.verl.run import train
        from ctpo.report.drawing import draw_learning_curve

        outcome = train(keys, listener=display, resume=args.resume, started=args.started, trust=args.trust)
        if outcome.finished:
            draw_learning_curve(outcome.run.path)
            display.finished(outcome)
            return 0
    words = f"{resume_words(outcome.run.path)} --trust"
    print(f"ctpo: interrupted; continue from verl's last checkpoint with `{words}`")
    return INTERRUPTED


def _run_script_again(words: Sequence[str], resume: Path, *, trust: bool) -> None:
    """Put the script that trained a run in the place of this process; return if a recipe trained it."""
    run = RunDirectory(resume.parent if is_checkpoint(resume) else resume)
    recipe = run.read_recipe()
    check_command(recipe, run.path, TRAIN)
    script = script_of(recipe, run.config)
    if script is None:
        return
    if words:
        raise UserError(
            f"{words[0]}: {run.path} was trained by a Python script, which sets its own settings; change them there"
        )
    if not trust:
        check_script(run, script)
    run_again(script, resume)


def _check(keys: dict[str, Any], resume: Path | None, *, trust: bool) -> None:
    """Refuse mistakes now: what comes next is the import of torch and TRL, which takes seconds."""
    from ctpo.training.config.settings import check, split

    if resume is None:
        check(keys)
        return
    split(keys)  # names and types; the run's directory has the others
    _resumed(resume, keys, trust=trust)


def _collect(words: Sequence[str], resume: Path | None, *, trust: bool) -> dict[str, Any]:
    """The keys that the words give: a recipe with overrides, or only overrides for a run to resume."""
    # os.path, since Path raises an error for a word that is too long for a path.
    recipes = [word for word in words if "=" not in word or os.path.isfile(word)]
    overrides = parse_overrides(word for word in words if word not in recipes)
    if resume is not None and recipes:
        raise UserError(
            f"recipe {recipes[0]} and --resume {resume} are both given; a run keeps its own recipe"
        )
    if len(recipes) > 1:
        raise UserError(
            f"{len(recipes)} recipes are given ({' '.join(recipes)}); give one, and overrides as key=value"
        )
    if resume is not None:
        return overrides
    if not recipes:
        return merge(embedded_recipe(), overrides)
    keys = merge(read_recipe(Path(recipes[0])), overrides)
    check_command(keys, Path(recipes[0]), TRAIN)
    if not trust:
        check_recipe(keys, overrides, Path(recipes[0]))
    return keys


def _resumed(resume: Path, overrides: dict[str, Any], *, trust: bool) -> dict[str, Any]:
    """The keys of a run with overrides."""
    run = RunDirectory(resume.parent if is_checkpoint(resume) else resume)
    keys = merge(run.read_recipe(), overrides)
    if not trust:
        check_recipe(keys, overrides, run.config)
    return keys


def _show(keys: dict[str, Any]) -> int:
    import yaml

    from ctpo.training.config.settings import resolved

    choice, rest = split_engine(keys)
    shown = {**resolved(rest), **engine_keys(choice)}
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
    return 0


def _recipe_keys() -> str:
    fields = dataclasses.fields(Recipe)
    width = max(len(each.name) for each in fields)
    return "\n".join(f"  {each.name:<{width}}  {each.metadata['help']} [{each.default}]" for each in fields)
