"""The trust region that a run's measured drift asks for, and what to doubt about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from torch import Tensor

from ctpo.errors import UserError
from ctpo.objectives import Calibration, calibrate
from ctpo.objectives.tails import Tails
from ctpo.training.diagnostics.pool import pool

_FEW_BINS: Final = 6
_EVEN: Final = 2.0
"""A bin is off where the band would clip less than 1/2 or more than 2 times the share."""
_OFF_SHARE: Final = 0.2
_STRAIGHT: Final = (0.35, 0.65)
_HARD: Final = 0.05
_SHORT: Final = 0.7


@dataclass(frozen=True)
class Row:
    """One bin; shares are of its tokens, high and low together."""

    first: int
    last: int
    count: int
    std: float
    fitted: float
    clipped: float
    """By the band the run had."""
    proposed: float


@dataclass(frozen=True)
class Proposal:
    """A calibration, bin by bin."""

    batches: tuple[int, int]
    calibration: Calibration
    rows: list[Row]
    expected: float
    """Share of all tokens the proposed band would have clipped, and `clipped` what the run's own did."""
    clipped: float
    warnings: list[str]

    @property
    def knobs(self) -> dict[str, float]:
        """`objective_kwargs` of ctpo-calibrated, to six digits."""
        return {name: float(f"{value:.6g}") for name, value in self.calibration.knobs.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = self.calibration
        fit = {name: getattr(found, name) for name in ("scale", "scale_stderr", "power", "power_stderr")}
        return {
            "batches": list(self.batches),
            "objective": "ctpo-calibrated",
            "objective_kwargs": self.knobs,
            "spread": fit,
            "band": {"low": found.low, "high": found.high},
            "expected_clip_fraction": self.expected,
            "measured_clip_fraction": self.clipped,
            "bins": [asdict(row) for row in self.rows],
            "warnings": self.warnings,
        }


def propose(
    lines: Sequence[dict[str, Any]], share: float, power: float | None, recipe: Mapping[str, Any]
) -> Proposal:
    """Fit the pooled lines of a run.

    Args:
        lines: of its profile.
        share: of the tokens to clip, in (0, 0.5).
        power: fixes the exponent.
        recipe: the run's keys.

    Raises:
        UserError: if there is nothing to fit, or a value is out of range.
    """
    profile = pool(lines)
    try:
        found = calibrate(profile, share, power)
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from None
    rows = _rows(profile, found)
    total = sum(row.count for row in rows)
    clipped = sum(row.clipped * row.count for row in rows) / total
    expected = sum(row.proposed * row.count for row in rows) / total
    warnings = [*_of_fit(found, rows, total), *_of_run(rows, clipped, recipe)]
    return Proposal((lines[0]["batch"], lines[-1]["batch"]), found, rows, expected, clipped, warnings)


def _rows(profile: Mapping[str, Tensor], found: Calibration) -> list[Row]:
    tails = Tails.of(profile)
    assert tails is not None
    proposed = tails.clip_fraction(found.low, found.high, found.power).tolist()
    clipped = ((profile["high"] + profile["low"]) / profile["count"].clamp(min=1)).tolist()
    fitted = (found.scale * tails.positions**found.power).tolist()
    edges, counts = [round(edge) for edge in profile["edge"].tolist()], profile["count"].tolist()
    firsts = [1, *(edge + 1 for edge in edges)]
    columns = (firsts, edges, counts, profile["log_ratio_std"].tolist(), fitted, clipped, proposed)
    return [
        Row(first, last, round(count), *figures)
        for first, last, count, *figures in zip(*columns, strict=False)
        if count
    ]


def _of_fit(found: Calibration, rows: list[Row], total: int) -> list[str]:
    warnings = []
    if len(found.positions) < _FEW_BINS:
        warnings.append(
            f"only {len(found.positions)} bins hold a spread: the exponent is hardly measured; use longer responses or "
            "--power 0.5"
        )
    off = [row for row in rows if not found.share / _EVEN <= row.proposed <= found.share * _EVEN]
    tokens = sum(row.count for row in off) / total
    if tokens > _OFF_SHARE:
        lowest, highest = min(row.proposed for row in rows), max(row.proposed for row in rows)
        warnings.append(
            f"one power of t does not describe this drift: bins would be clipped between {lowest:.1%} and "
            f"{highest:.1%}, and {tokens:.0%} of the tokens lie where it is less than half or more than twice "
            f"{found.share:.0%}"
        )
    if found.power_stderr > 0 and not _STRAIGHT[0] <= found.power <= _STRAIGHT[1]:
        warnings.append(
            f"the spread grows as t^{found.power:.2f} ± {found.power_stderr:.2f}, not as the square root of t: tokens "
            "do not drift independently and alike"
        )
    for name, bound in (("lower", found.low), ("upper", found.high)):
        if bound == 0:
            warnings.append(f"the {name} bound is at ratio 1: most tokens it concerns moved away from it")
    return warnings


def _of_run(rows: list[Row], clipped: float, recipe: Mapping[str, Any]) -> list[str]:
    warnings = []
    if clipped > _HARD:
        warnings.append(
            f"the run's own band clipped {clipped:.1%} of the tokens, which held its drift back: under another band it "
            "drifts otherwise; calibrate that run too, or train with calibrate_online=true"
        )
    longest, limit = rows[-1].last, recipe.get("max_completion_length")
    if isinstance(limit, int) and longest < _SHORT * limit:
        warnings.append(
            f"no response had more than {longest} tokens of the {limit} allowed: beyond, the band is extrapolated"
        )
    return warnings
