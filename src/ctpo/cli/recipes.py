"""`ctpo recipes`: the recipes and examples that come with the package."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from ctpo.cli.table import table
from ctpo.errors import UserError

_DESCRIPTION: Final = """\
List the recipes and examples that come with the package, or copy them.

A recipe is a YAML file for `ctpo train`, with a README that says what was measured. An example is a short program to
read and run. They are files of yours once they are copied: change them as you like.
"""
_EPILOG: Final = """\
examples:
  ctpo recipes                              what there is
  ctpo recipes --copy DIR                   everything into DIR/recipes and DIR/examples
  ctpo recipes smollm2-tool --copy DIR      one folder of recipes, or one example
"""
_FOLDER: Final = "share/ctpo"
_WIDTH: Final = 90
"""Characters of a description in the list."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo recipes`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="folders of recipes, or examples; all by default"
    )
    parser.add_argument("--copy", type=Path, metavar="DIR", help="copy them into this directory")


def run(args: argparse.Namespace) -> int:
    """List or copy recipes and examples."""
    home = shipped()
    there = {path.stem if path.is_file() else path.name: path for path in _each(home)}
    for name in args.names:
        if name not in there:
            raise UserError(f"recipe {name!r} is unknown; use one of {', '.join(there)}")
    chosen = [there[name] for name in args.names or there]
    if args.copy is None:
        rows = [
            [path.relative_to(home).as_posix(), textwrap.shorten(_about(path), _WIDTH, placeholder=" …")]
            for path in chosen
        ]
        print(table(["file", "what it is"], rows, left=2))
        return 0
    for path in chosen:
        goal = args.copy / path.relative_to(home)
        if goal.exists():
            raise UserError(f"--copy: {goal} exists already; choose another directory, or remove it")
    try:
        for path in chosen:
            goal = args.copy / path.relative_to(home)
            goal.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, goal)
            print(goal)
    except OSError as error:
        raise UserError(f"--copy {args.copy} cannot be written ({error.strerror}); choose another") from None
    return 0


def shipped() -> Path:
    """The folder that holds `recipes` and `examples`: the source tree, or where the package was installed.

    Raises:
        UserError: if there is none.
    """
    places = [Path(__file__).parents[3], *_installed()]
    for place in places:
        if (place / "recipes").is_dir() and (place / "examples").is_dir():
            return place
    raise UserError(
        f"{places[-1]} holds no recipes, which are installed with the package; reinstall it with pip"
    )


def _installed() -> list[Path]:
    """The folder to which pip wrote the recipes, by its own record, wherever the package is."""
    try:
        ours = distribution("ctpo")
    except PackageNotFoundError:
        return []
    files = [file.as_posix().partition(_FOLDER) for file in ours.files or ()]
    return [Path(str(ours.locate_file(head + _FOLDER))).resolve() for head, found, _ in files if found][:1]


def _each(home: Path) -> Iterator[Path]:
    """Each folder of recipes and each example."""
    yield from sorted(
        path for path in (home / "recipes").iterdir() if path.is_dir() and any(path.glob("*.yaml"))
    )
    yield from sorted((home / "examples").glob("*.py"))


def _about(path: Path) -> str:
    """The heading of a README, or the first line of a program or of its first recipe."""
    if path.is_file():
        return path.read_text(encoding="utf-8").splitlines()[0].strip('"')
    readme = path / "README.md"
    source = readme if readme.exists() else min(path.glob("*.yaml"))
    return source.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
