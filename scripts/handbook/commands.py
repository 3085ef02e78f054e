"""The page of all commands: the help that each prints."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Final

from ctpo.cli.main import build_parser
from handbook.markdown import linked

_INTRODUCTION: Final = """\
# Command line

This page shows what `ctpo COMMAND --help` prints. A mistake of yours ends a command with one line on stderr and the
exit code 2. After Ctrl-C the exit code is 130.
"""
_PAGE: Final = re.compile(r"\[[^\]]+\]\([^)]+\.md\)")


def page() -> str:
    """The whole page in Markdown."""
    os.environ["COLUMNS"] = "112"  # argparse wraps at the width of the terminal
    os.environ["NO_COLOR"] = "1"
    return "\n".join([_INTRODUCTION, *map(_section, parsers())])


def parsers() -> Iterator[argparse.ArgumentParser]:
    """The parser of every command and of every action of a command."""
    return _below(build_parser())


def _below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    module = getattr(parser, "_module", "")
    if module:  # a command gets its arguments when it is chosen
        import_module(f"ctpo.cli.{module.replace('-', '_')}").add_arguments(parser)
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _below(each)


def _section(parser: argparse.ArgumentParser) -> str:
    text = parser.format_help().rstrip()
    pages = ", ".join(sorted(set(_PAGE.findall(linked(text)))))
    more = f"More: {pages}.\n\n" if pages else ""
    return f"## {parser.prog}\n\n{more}```text\n{text}\n```\n"
