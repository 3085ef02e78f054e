"""`ctpo eval`: the accuracy of a model on held-out problems."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ctpo.errors import UserError

_DESCRIPTION = """\
Sample one response to each held-out problem, with the tool running in the sandbox, and report pass@1.

RUN_OR_MODEL is a run's directory (its trained model, or the last checkpoint of an unfinished run; task and
sampling as in the run), a model directory, a hub id, or 'embedded' for the model that ships with the package.
"""


def register(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "eval",
        help="accuracy of a run's model, or any model, on held-out problems",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="RUN_OR_MODEL")
    parser.add_argument("words", nargs="*", metavar="key=value", help="recipe keys to change, as in `ctpo train`")
    parser.add_argument("--seed", type=int, help="seed of problems and sampling; unset uses that of every run")
    parser.add_argument("--greedy", action="store_true", help="take the most probable token instead of sampling")
    parser.add_argument("--show", type=int, default=2, metavar="N", help="print N transcripts (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all transcripts to FILE")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate as the command line says."""
    from rich.console import Console

    from ctpo.training.evaluate import evaluate_model
    from ctpo.training.recipe import parse_overrides

    if args.show < 0:
        raise UserError(f"--show {args.show} is negative; give a number of transcripts")
    console = Console(soft_wrap=True)
    with console.status("evaluating …"):
        evaluation = evaluate_model(
            args.model, parse_overrides(args.words), seed=args.seed, greedy=args.greedy
        )
    for row in evaluation.transcripts(args.show):
        mark = "right" if row["correct"] else f"wrong, the answer is {row['answer']}"
        console.print(f"{row['prompt']}{row['completion']}   [{mark}]\n", markup=False, highlight=False)
    figures = evaluation.summary()
    console.print(
        f"pass@1 {figures['pass@1']:.3f} ± {figures['stderr']:.3f} on {figures['problems']} problems; "
        f"{figures['tool_calls']:.2f} tool calls and {figures['tokens']:.1f} tokens a response, "
        f"{figures['finished']:.1%} ended by the model",
        highlight=False,
    )
    if args.json is not None:
        _write(args.json, {**figures, "transcripts": evaluation.transcripts(len(evaluation.problems))})
    return 0


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written ({error.strerror}); choose another file") from None
