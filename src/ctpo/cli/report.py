"""`ctpo report`: one self-contained page of runs or of a comparison."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctpo.errors import UserError, one_line
from ctpo.extras import require
from ctpo.runs.atomic import write_text

if TYPE_CHECKING:
    from ctpo.report.collection import Collection
    from ctpo.report.page import Note

_DESCRIPTION: Final = """\
Make one HTML page of runs: curves, clipping and log ratios by position, tool use, responses with the ratio of every
token, statistics over seeds, and settings. The page holds everything it needs. It opens from disk, on a phone too.

RUN is the directory of a run, of a comparison (written by `ctpo compare`), or of several runs. Runs that differ only
in the seed form one group. What is missing or damaged is listed, and the rest is shown.
docs/how-to/report.md explains the figures.
"""
_EPILOG: Final = """\
examples:
  ctpo report runs/NAME                        report.html in the run's directory
  ctpo report runs/a runs/b --output both.html
  ctpo report study                            a comparison: groups, bands over seeds, paired tests
  ctpo report study --plots figures            each plot as PNG and SVG too
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo report`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN")
    add(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="where to write the page (default: report.html in RUN; for several, in the current directory)",
    )
    add("--title", metavar="TEXT", help="of the page (default: what was trained, with which objectives)")
    add("--plots", type=Path, metavar="DIR", help="also write each plot there, as PNG and SVG")
    add("--open", action="store_true", help="show the page in the browser")


def run(args: argparse.Namespace) -> int:
    """Make the page, and print where it is and what is missing."""
    require("ctpo report", "report", "yaml", *(["matplotlib"] if args.plots is not None else []))
    from ctpo.report.collection import collect
    from ctpo.report.page import figures, notes, page

    collection = collect(args.runs)
    plots = figures(collection)
    html = page(collection, plots, args.title or _title(collection))
    path = args.output or (args.runs[0] if len(args.runs) == 1 else Path()) / "report.html"
    _write(path, html)
    line = f"{path}  {len(html.encode()) / 1e6:.2f} MB, {len(collection.runs)} runs, {len(plots)} plots"
    print(line if len(collection.runs) > 1 else line.replace("1 runs", "1 run"))
    if args.plots is not None:
        from ctpo.report.drawing import draw

        print(f"{args.plots}  {len(draw(collection, plots, args.plots))} files")
    _print_missing(notes(collection))
    if args.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0


def _title(collection: Collection) -> str:
    runs = collection.runs
    tasks = sorted({str(run.config["task"]) for run in runs if run.config.get("task")})
    of = f" on {', '.join(tasks)}" if tasks else ""
    names = list(dict.fromkeys(group.name for group in collection.groups)) or ["a comparison"]
    objectives = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    seed = f", seed {runs[0].seed}" if len(runs) == 1 and runs[0].seed is not None else ""
    return f"{objectives}{of}{seed}"


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}); choose another") from None


def _print_missing(notes: Sequence[Note]) -> None:
    if not notes:
        return
    print("missing or damaged (the page says so too):")
    for note in notes:
        count = len(note.runs)
        whose = "" if not count else f"{note.runs[0]}: " if count == 1 else f"{count} runs: "
        print(one_line(f"  {whose}{note.text}"))
