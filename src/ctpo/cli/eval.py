"""`ctpo eval`: the accuracy of a model on held-out problems."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctpo.cli.quiet import quieten
from ctpo.errors import UserError
from ctpo.tasks import get_task, task_names
from ctpo.tasks.arithmetic import model_path
from ctpo.training.recipe import EMBEDDED_MODEL, Recipe
from ctpo.training.rundir import RunDirectory

if TYPE_CHECKING:
    from ctpo.evaluation import Evaluation

_DESCRIPTION = """\
Sample one response to each held-out problem, with the tool running in the sandbox, and report pass@1.

RUN_OR_MODEL is a run's directory (its trained model, or the last checkpoint of an unfinished run; task, lengths
and temperature as in the run), a model directory, a hub id, or 'embedded' for the model that ships with the package.
"""

# What an evaluation needs to know beyond the model; a run brings its own.
_DEFAULTS: dict[str, Any] = {
    "task": "arithmetic",
    "max_completion_length": 96,
    "temperature": 1.0,
    "eval_problems": 1024,
}


def register(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "eval",
        help="accuracy of a run's model, or any model, on held-out problems",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="RUN_OR_MODEL")
    parser.add_argument("--task", choices=task_names(), help="whose problems")
    parser.add_argument("--limit", type=int, metavar="N", help="number of problems")
    parser.add_argument("--temperature", type=float, help="of sampling; 0 takes the most probable token")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="length of a response, tool output included"
    )
    parser.add_argument("--seed", type=int, help="draws problems and samples; unset uses that of every run")
    parser.add_argument("--show", type=int, default=2, metavar="N", help="transcripts to print (default 2)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write eval.json and transcripts.jsonl there"
    )
    parser.add_argument(
        "--unsafe-no-isolation",
        action="store_true",
        help="run model-written programs without a sandbox: they can do whatever you can",
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate as the command line says."""
    from rich.console import Console

    location, settings = _resolve(args)
    if args.output is not None:
        _make(args.output)
    console = Console(soft_wrap=True)
    quieten()
    with console.status("evaluating …"):
        evaluation = _evaluate(location, settings, args)
    _print(console, evaluation, args.show)
    if args.output is not None:
        _write(args.output, location, settings, evaluation)
    return 0


def _resolve(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Where the model is, and the settings: the command line's, else the run's, else the defaults."""
    settings = dict(_DEFAULTS)
    location = args.model
    run = RunDirectory(Path(args.model))
    if args.model == EMBEDDED_MODEL:
        location = str(model_path())
    elif run.holds_a_run:
        keys = run.read_recipe()
        settings.update({name: keys[name] for name in _DEFAULTS if keys.get(name) is not None})
        location = str(_trained(run))
    else:
        Recipe(model=args.model)  # refuses what is neither a model directory nor a hub id
    given = {
        "task": args.task,
        "max_completion_length": args.max_tokens,
        "temperature": args.temperature,
        "eval_problems": args.limit,
    }
    settings.update({name: value for name, value in given.items() if value is not None})
    for name, option in (("eval_problems", "--limit"), ("max_completion_length", "--max-tokens")):
        if settings[name] < 1:
            raise UserError(f"{option} {settings[name]} is too small; use at least 1")
    if settings["temperature"] < 0:
        raise UserError(f"--temperature {settings['temperature']} is negative; use 0 or more")
    return location, settings


def _trained(run: RunDirectory) -> Path:
    if run.model.is_dir():
        return run.model
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        raise UserError(
            f"{run.path} has neither a trained model nor a checkpoint; wait for one, or name a model"
        )
    return checkpoint


def _evaluate(location: str, settings: dict[str, Any], args: argparse.Namespace) -> Evaluation:
    from ctpo.evaluation.model import HELDOUT_SEED, evaluate_model
    from ctpo.rollout.engine import Sampling

    return evaluate_model(
        location,
        get_task(settings["task"]),
        count=settings["eval_problems"],
        sampling=Sampling(
            max_new_tokens=settings["max_completion_length"], temperature=settings["temperature"]
        ),
        seed=HELDOUT_SEED if args.seed is None else args.seed,
        unsafe_no_isolation=args.unsafe_no_isolation,
    )


def _print(console: Any, evaluation: Evaluation, show: int) -> None:
    for row in evaluation.transcripts(max(show, 0)):
        mark = "right" if row["correct"] else f"wrong, the answer is {row['answer']}"
        console.print(f"{row['prompt']}{row['completion']}   [{mark}]\n", markup=False, highlight=False)
    figures = evaluation.summary()
    console.print(
        f"pass@1 {figures['pass@1']:.3f} ± {figures['stderr']:.3f} on {figures['problems']} problems; "
        f"{figures['tool_calls']:.2f} tool calls and {figures['tokens']:.1f} tokens a response, "
        f"{figures['finished']:.1%} ended by the model",
        highlight=False,
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made ({error.strerror}); choose another") from None


def _write(folder: Path, location: str, settings: dict[str, Any], evaluation: Evaluation) -> None:
    figures = {"model": location, **settings, **evaluation.summary()}
    (folder / "eval.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    rows = evaluation.transcripts(len(evaluation.problems))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "transcripts.jsonl").write_text(text, encoding="utf-8")
