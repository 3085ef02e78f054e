"""The entry point of `ctpo`. A command's module is imported when that command is chosen, and not before."""

from __future__ import annotations

import argparse
import errno
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, NoReturn

from ctpo.cli.quiet import is_main_process
from ctpo.errors import UserError, one_line
from ctpo.version import __version__

_COMMANDS: Final = {
    "train": "train a model; with no arguments, the embedded recipe",
    "warm-up": "teach a model the form of a task from worked solutions, before `ctpo train`",
    "eval": "accuracy of a run's model, or any model, on held-out problems",
    "task": "try a task before training on it: problems, check, rendering",
    "calibrate": "propose a trust region from the drift that a run recorded",
    "compare": "compare objectives over seeds, all tuned alike",
    "report": "make one self-contained page of runs or of a comparison",
    "fidelity": "which objective suits a pair of policies: gradients against on-policy ones",
    "theory": "exact bias and variance of the objectives on policies small enough to enumerate",
    "recipes": "list the recipes and examples that come with the package, or copy them",
    "sandbox": "run untrusted Python programs, and check that they are contained here",
}
"""The commands. Each has a module of its name in this package, `_` for `-`, with `add_arguments(parser)` and
`run(args)`."""

_EPILOG: Final = """\
first steps:
  ctpo train                          train the embedded model on arithmetic with CTPO, on a CPU
  ctpo train objective=grpo seed=1    the same with another objective and seed
  ctpo warm-up recipe.yaml            first teach a language model the tool and the form of an answer
  ctpo eval runs/NAME                 accuracy of a run's model on held-out problems
  ctpo task check mine.py             does a task of your own hold what training needs?
  ctpo calibrate runs/NAME            a trust region from the drift that the run recorded
  ctpo theory                         exact bias and variance of each objective, on policies one can enumerate
  ctpo compare study.yaml             objectives against each other over seeds
  ctpo fidelity runs/NAME --lag 4     which objective suits a run, from gradients alone
  ctpo report runs/NAME               a page of plots, statistics and transcripts of runs or of a comparison
  ctpo recipes --copy .               recipes and examples to start from
  ctpo sandbox check                  does the isolation of model-written programs hold on this machine?

what to install:
  pip install ctpo                    the objectives, `ctpo theory` and `ctpo sandbox`
  pip install 'ctpo[report]'          also `ctpo report`, `ctpo calibrate` and figures
  pip install 'ctpo[train]'           also `ctpo train`, `ctpo warm-up` and `ctpo eval`
  pip install 'ctpo[compare]'         also `ctpo compare` and `ctpo fidelity`
"""

USAGE: Final = 2
"""The exit code for what the user can correct."""
INTERRUPTED: Final = 130
"""The exit code after Ctrl-C: 128 + SIGINT, as in a shell."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


class _Command(_Parser):
    """The parser of one command. It gets its arguments from the module `ctpo.cli.NAME`, on first use."""

    def __init__(self, *, module: str = "", **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._module = module
        self._intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._module:
            command = import_module(f"ctpo.cli.{self._module.replace('-', '_')}")
            command.add_arguments(self)
            self.set_defaults(handler=command.run)
            self._module = ""
        if self._intermixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        # Options may stand between words: `ctpo train my.yaml --trust seed=1`. This calls back here.
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="ctpo",
        description="Off-policy reinforcement learning of language models with cumulative-token ratios.",
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=18, width=110),
    )
    parser.add_argument("--version", action="version", version=f"ctpo {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", parser_class=_Command
    )
    for name, about in _COMMANDS.items():
        commands.add_parser(name, help=about, module=name)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Without a command, print the help."""
    started = time.perf_counter()  # before the command's imports, which count as its time
    try:
        parser = build_parser()
        args = parser.parse_args(argv, argparse.Namespace(started=started))
        if args.command is None:
            parser.print_help()
            return 0
        code: int = args.handler(args)
        return code
    except UserError as error:
        if is_main_process() or error.of_one_process:
            print(f"ctpo: {error}", file=sys.stderr)  # on one line, without what controls a terminal
        return USAGE
    except KeyboardInterrupt:
        print("ctpo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left (`ctpo … | head`)
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(
            f"ctpo: {one_line(str(error.filename), 80)} is too long for a path; give another", file=sys.stderr
        )
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
