"""`ctpo calibrate`: the trust region that a run's own drift asks for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctpo.cli.table import table
from ctpo.errors import UserError, one_line
from ctpo.extras import require

if TYPE_CHECKING:
    from ctpo.training.diagnostics.proposal import Proposal

_DESCRIPTION: Final = """\
Propose a trust region for CTPO from the drift that a run recorded.

The spread of the log ratio is fitted as scale * t^power over the positions t of the responses. The proposed band
follows the fit. It is as wide as to clip the chosen share of the tokens with a positive advantage, and the same share
of those with a negative one.
"""
_EPILOG: Final = """\
examples:
  ctpo calibrate runs/NAME                      clip a tenth of the tokens
  ctpo calibrate runs/NAME --share 0.05         clip fewer
  ctpo calibrate runs/NAME --batches 8          use its last 8 rollout batches
  ctpo calibrate runs/NAME --power 0.5          keep the square root of t
  ctpo calibrate runs/NAME --drift              let the centre of the band follow the mean
  ctpo train objective=ctpo-calibrated calibrate_online=true
                                                let a run calibrate itself after each rollout batch
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ctpo calibrate`."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's directory")
    add("--share", type=float, default=0.1, help="share of the tokens to clip, above 0, below 0.5 [0.1]")
    add("--batches", type=int, metavar="LAST", help="use only the last LAST rollout batches [all]")
    add("--power", type=float, help="exponent of t, instead of the fitted one")
    add("--drift", action="store_true", help="let the band's centre follow the mean, in proportion to t")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Read the run's profile, and print the proposal."""
    if args.batches is not None and args.batches < 1:
        raise UserError(f"--batches {args.batches} is too small; use at least 1")
    require("ctpo calibrate", "report", "yaml")
    from ctpo.runs.directory import RunDirectory
    from ctpo.runs.profiles import read_checked_profiles
    from ctpo.training.diagnostics.proposal import propose

    directory = RunDirectory(args.run)
    profiles = read_checked_profiles(directory)
    recipe = directory.read_recipe() if directory.config.is_file() else {}
    chosen = list(profiles.items())[-(args.batches or len(profiles)) :]
    proposal = propose(dict(chosen), args.share, args.power, recipe, args.drift)
    if args.json:
        print(json.dumps(proposal.as_dict(), indent=2, allow_nan=False))
    else:
        _print(args.run, proposal)
    return 0


def _print(path: Path, proposal: Proposal) -> None:
    fit = proposal.calibration
    first, last = proposal.batches
    print(f"{path}, rollout batches {first} to {last}")
    print(f"spread of the log ratio: {fit.scale:.3g} * t^{fit.power:.2f} (exponent ± {fit.power_stderr:.2f})")
    if fit.drift:
        print(f"mean of the log ratio: {-fit.drift:.3g} * t")
    rows = []
    for row in proposal.rows:
        span = str(row.last) if row.first == row.last else f"{row.first}-{row.last}"
        shares = (f"{100 * share:.1f} %" for share in (row.clipped, row.proposed))
        std = "–" if row.std is None else f"{row.std:.3g}"
        rows.append([span, f"{row.count:,}", std, f"{row.fitted:.3g}", *shares])
    count = sum(row.count for row in proposal.rows)
    total = [
        *("all", f"{count:,}", "", ""),
        *(f"{100 * share:.1f} %" for share in (proposal.clipped, proposal.expected)),
    ]
    head = ("tokens", "count", "spread", "fitted", "clipped", "proposed")
    print(f"\n{table(head, [*rows, [], total], left=0)}\n")
    power = f"t^{fit.power:.3g}"
    centre = f" - {fit.drift:.3g} * t" if fit.drift else ""
    print(
        "clipped: by the run's own band, above and below together, without the dual clip\n"
        f"proposed: what [-{fit.low:.3g} * {power}, {fit.high:.3g} * {power}]{centre} would have clipped "
        "of the same tokens"
    )
    for warning in proposal.warnings:
        print(one_line(f"note: {warning}"))
    words = " ".join(f"objective_kwargs.{name}={value:g}" for name, value in proposal.knobs.items())
    print("\nin a recipe:\n  objective: ctpo-calibrated")
    print(f"  objective_kwargs: {json.dumps(proposal.knobs)}")
    print(f"on the command line:\n  ctpo train objective=ctpo-calibrated {words}")
