"""Entry point of `ctpo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import ctpo
from ctpo.cli import calibrate as calibrate_command
from ctpo.cli import compare as compare_command
from ctpo.cli import eval as eval_command
from ctpo.cli import report as report_command
from ctpo.cli import sandbox as sandbox_command
from ctpo.cli import theory as theory_command
from ctpo.cli import train as train_command
from ctpo.cli.quiet import is_main_process
from ctpo.errors import UserError

_EPILOG = """\
first steps:
  ctpo train                          train the embedded model on arithmetic with CTPO, on a CPU
  ctpo train objective=grpo seed=1    the same with another objective and seed
  ctpo eval runs/NAME                 accuracy of a run's model on held-out problems
  ctpo calibrate runs/NAME            a trust region from the drift the run recorded
  ctpo theory                         exact bias and variance of each objective, on policies one can enumerate
  ctpo compare study.yaml             objectives against each other over seeds
  ctpo report runs/NAME               a page of plots, statistics and transcripts of runs or of a comparison
  ctpo sandbox check                  does the isolation of model-written programs hold on this machine?
"""

USAGE = 2  # exit code for what the user can mend
INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="ctpo",
        description="Off-policy reinforcement learning of language models with cumulative-token ratios.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ctpo {ctpo.__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for command in (
        train_command,
        eval_command,
        calibrate_command,
        compare_command,
        report_command,
        theory_command,
        sandbox_command,
    ):
        command.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    try:
        args = build_parser().parse_args(argv)
        code: int = args.handler(args)
        return code
    except UserError as error:
        if is_main_process() or error.of_one_process:
            print(f"ctpo: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("ctpo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left (`ctpo … | head`)
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
