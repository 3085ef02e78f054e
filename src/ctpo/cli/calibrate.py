"""`ctpo calibrate`: the trust region that a run's own drift asks for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctpo.errors import UserError

if TYPE_CHECKING:
    from ctpo.training.diagnostics.proposal import Proposal

_DESCRIPTION = """\
Propose a trust region for CTPO from the drift that a run recorded.

The spread of the log ratio is fitted as scale * t^power over the positions t of the responses; the band follows it,
as wide as to clip the chosen share of the tokens of positive and of negative advantage.
"""
_EPILOG = """\
examples:
  ctpo calibrate runs/NAME                      clip a tenth of the tokens
  ctpo calibrate runs/NAME --share 0.05         fewer
  ctpo calibrate runs/NAME --batches 8          from its last 8 rollout batches
  ctpo calibrate runs/NAME --power 0.5          keep the square root of t
  ctpo train objective=ctpo-calibrated calibrate_online=true
                                                let a run calibrate itself after each rollout batch
"""


def register(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "calibrate",
        help="propose a trust region from the drift a run recorded",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument(
        "--share", type=float, default=0.1, help="of the tokens to clip, above 0, below 0.5 [0.1]"
    )
    parser.add_argument(
        "--batches", type=int, metavar="LAST", help="rollout batches to use, the last ones [all]"
    )
    parser.add_argument("--power", type=float, help="exponent of t instead of the fitted one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Calibrate as the command line says."""
    if args.batches is not None and args.batches < 1:
        raise UserError(f"--batches {args.batches} is too small; use at least 1")
    from ctpo.runs.directory import RunDirectory
    from ctpo.runs.profiles import read_checked_profiles
    from ctpo.training.diagnostics.proposal import propose

    directory = RunDirectory(args.run)
    profiles = read_checked_profiles(directory)
    recipe = directory.read_recipe() if directory.config.is_file() else {}
    chosen = list(profiles.items())[-(args.batches or len(profiles)) :]
    proposal = propose(dict(chosen), args.share, args.power, recipe)
    if args.json:
        print(json.dumps(proposal.as_dict(), indent=2, allow_nan=False))
    else:
        _print(args.run, proposal)
    return 0


def _print(path: Path, proposal: Proposal) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False, markup=False)
    found = proposal.calibration
    first, last = proposal.batches
    console.print(f"{path}, rollout batches {first} to {last}")
    console.print(
        f"spread of the log ratio: {found.scale:.3g} * t^{found.power:.2f} (exponent ± {found.power_stderr:.2f})"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("tokens", "count", "spread", "fitted", "clipped", "proposed"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in proposal.rows:
        span = str(row.last) if row.first == row.last else f"{row.first}-{row.last}"
        shares = (f"{100 * share:.1f} %" for share in (row.clipped, row.proposed))
        table.add_row(span, f"{row.count:,}", f"{row.std:.3g}", f"{row.fitted:.3g}", *shares)
    table.add_section()
    count = sum(row.count for row in proposal.rows)
    table.add_row(
        "all", f"{count:,}", "", "", f"{100 * proposal.clipped:.1f} %", f"{100 * proposal.expected:.1f} %"
    )
    console.print(table)
    power = f"t^{found.power:.3g}"
    console.print(
        "clipped: by the run's own band, above and below together (the dual clip stands apart)\n"
        f"proposed: what [-{found.low:.3g} * {power}, {found.high:.3g} * {power}] would have clipped of the same tokens"
    )
    for warning in proposal.warnings:
        console.print(f"note: {warning}")
    words = " ".join(f"objective_kwargs.{name}={value:g}" for name, value in proposal.knobs.items())
    console.print("\nin a recipe:\n  objective: ctpo-calibrated")
    console.print(f"  objective_kwargs: {json.dumps(proposal.knobs)}")
    console.print(f"on the command line:\n  ctpo train objective=ctpo-calibrated {words}")
