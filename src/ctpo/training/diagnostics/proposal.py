"""The trust region that a run's recorded drift asks for, and what to doubt about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.objectives import Calibration, calibrate
from ctpo.objectives.calibration import Tails
from ctpo.runs.profiles import Profile, pooled

_FEW_BINS: Final = 6
"""With fewer bins than this, the exponent is hardly measured."""
_UNEVEN: Final = 2.0
"""A bin is uneven if the band would clip less than 1/2 of the share there, or more than 2 times the share."""
_UNEVEN_TOKENS: Final = 0.2
"""The share of tokens in uneven bins from which a warning is given."""
_SQUARE_ROOT: Final = (0.35, 0.65)
"""Exponents that count as growth with the square root of the position."""
_HARD: Final = 0.05
"""The share of clipped tokens from which the run's own band is taken to have changed the drift."""
_POOLED: Final = (
    "the profile was written by an earlier release, which pooled the updates of a rollout batch: their different means "
    "add to the spread, and the exponent comes out too large; train again for one within updates"
)
_DECAY: Final = 0.98
"""The decay of `ctpo-decay` if the recipe does not say it."""
_SHORT: Final = 0.7
"""Responses are short if the longest has less than this part of the tokens allowed."""


@dataclass(frozen=True)
class Row:
    """One bin of positions. Shares are of its tokens, clipped above and below together."""

    first: int
    last: int
    """First and last position, in tokens."""
    count: int
    std: float | None
    """Measured spread of the log ratio, nats; None if no position has two responses of one update."""
    fitted: float
    """Spread by the fit, nats."""
    clipped: float
    """Share that the run's own band clipped."""
    proposed: float
    """Share that the proposed band would have clipped."""


@dataclass(frozen=True)
class Proposal:
    """A calibration with its figures bin by bin."""

    batches: tuple[int, int]
    """First and last rollout batch used."""
    calibration: Calibration
    rows: list[Row]
    expected: float
    """Share of all tokens that the proposed band would have clipped."""
    clipped: float
    """Share of all tokens that the run's own band clipped."""
    warnings: list[str]

    @property
    def knobs(self) -> dict[str, float]:
        """The `objective_kwargs` of ctpo-calibrated for this band, to six digits."""
        return {name: float(f"{value:.6g}") for name, value in self.calibration.knobs.items()}

    def as_dict(self) -> dict[str, Any]:
        """The proposal as plain values for JSON."""
        fit = self.calibration
        names = ("scale", "scale_stderr", "power", "power_stderr")
        return {
            "batches": list(self.batches),
            "objective": "ctpo-calibrated",
            "objective_kwargs": self.knobs,
            "spread": {name: getattr(fit, name) for name in names},
            "band": {"low": fit.low, "high": fit.high, **({"drift": fit.drift} if fit.drift else {})},
            "expected_clip_fraction": self.expected,
            "measured_clip_fraction": self.clipped,
            "bins": [asdict(row) for row in self.rows],
            "warnings": self.warnings,
        }


def propose(
    profiles: Mapping[int, Profile],
    share: float,
    power: float | None,
    recipe: Mapping[str, Any],
    drift: bool = False,
) -> Proposal:
    """The band that would have clipped the share of the tokens, fitted to rollout batches pooled together.

    Args:
        profiles: of a run, by rollout batch (`ctpo.runs.profiles.read_checked_profiles`).
        share: of the tokens to clip, in (0, 0.5).
        power: the exponent of t; None to fit it.
        recipe: the run's keys.
        drift: whether the centre of the band follows the mean.

    Raises:
        UserError: if there is nothing to fit, or a value is out of range.
    """
    everything = pooled(list(profiles.values()))
    columns = calibration_columns(everything)
    try:
        fit = calibrate(columns, share, power, drift)
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from None
    rows = _rows(columns, fit)
    total = sum(row.count for row in rows)
    clipped = sum(row.clipped * row.count for row in rows) / total
    expected = sum(row.proposed * row.count for row in rows) / total
    warnings = [*_warnings_of_fit(fit, rows, total), *_warnings_of_run(rows, clipped, recipe)]
    if not everything.within:
        warnings.insert(0, _POOLED)
    return Proposal((min(profiles), max(profiles)), fit, rows, expected, clipped, warnings)


def calibration_columns(profile: Profile) -> dict[str, Tensor]:
    """A profile's columns as float64 tensors under the names that `ctpo.objectives.calibrate` reads.

    Raises:
        ValueError: if the profile has no histogram by the sign of the advantage.
    """
    if profile.signed is None:
        raise ValueError("profile: it holds no log_ratio_histogram; record it with diagnostics=true")
    names = ("count", "high", "low", "position_mean", "log_ratio_mean", "log_ratio_std")
    columns = {name: [value or 0.0 for value in profile.columns[name]] for name in names}
    signed = profile.signed
    histogram = {"cell_edge": signed.edges, "gain": signed.gain, "harm": signed.harm}
    values = {"edge": profile.edge, **columns, **histogram}
    if profile.within:
        values |= {
            name: [each or 0.0 for each in profile.columns[name]] for name in ("spread", "spread_count")
        }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def _rows(columns: Mapping[str, Tensor], fit: Calibration) -> list[Row]:
    tails = Tails.of(columns)
    assert tails is not None
    proposed = tails.clip_fraction(fit.low, fit.high, fit.power, fit.drift).tolist()
    clipped = ((columns["high"] + columns["low"]) / columns["count"].clamp(min=1)).tolist()
    fitted = (fit.scale * tails.positions**fit.power).tolist()
    edges, counts = [round(edge) for edge in columns["edge"].tolist()], columns["count"].tolist()
    firsts = [1, *(edge + 1 for edge in edges)]
    std = columns.get("spread", columns["log_ratio_std"]).tolist()
    behind = columns.get("spread_count", columns["count"]).tolist()
    stds = [value if tokens else None for value, tokens in zip(std, behind, strict=True)]
    figures = (firsts, edges, counts, stds, fitted, clipped, proposed)
    return [
        Row(first, last, round(count), *rest)
        for first, last, count, *rest in zip(*figures, strict=False)
        if count
    ]


def _warnings_of_fit(fit: Calibration, rows: Sequence[Row], total: int) -> list[str]:
    warnings = []
    if len(fit.positions) < _FEW_BINS:
        warnings.append(
            f"only {len(fit.positions)} bins hold a spread: the exponent is hardly measured; use longer responses or "
            "--power 0.5"
        )
    uneven = [row for row in rows if not fit.share / _UNEVEN <= row.proposed <= fit.share * _UNEVEN]
    tokens = sum(row.count for row in uneven) / total
    if tokens > _UNEVEN_TOKENS:
        lowest, highest = min(row.proposed for row in rows), max(row.proposed for row in rows)
        warnings.append(
            f"one power of t does not describe this drift: bins would be clipped between {lowest:.1%} and "
            f"{highest:.1%}, and {tokens:.0%} of the tokens lie where it is less than half or more than twice "
            f"{fit.share:.0%}"
        )
    if fit.power_stderr > 0 and not _SQUARE_ROOT[0] <= fit.power <= _SQUARE_ROOT[1]:
        warnings.append(
            f"the spread grows as t^{fit.power:.2f} ± {fit.power_stderr:.2f}, not as the square root of t: tokens "
            "do not drift independently and alike"
        )
    for name, bound in (("lower", fit.low), ("upper", fit.high)):
        if bound == 0:
            warnings.append(f"the {name} bound is at ratio 1: most tokens it concerns moved away from it")
    return warnings


def _warnings_of_run(rows: Sequence[Row], clipped: float, recipe: Mapping[str, Any]) -> list[str]:
    warnings = []
    decay = (recipe.get("objective_kwargs") or {}).get("decay", _DECAY)
    if recipe.get("objective") == "ctpo-decay" and decay != 1:
        warnings.append(
            f"the run's own product forgets (ctpo-decay, decay={decay:g}), but the spread and the mean here are those "
            "of the whole product, which ctpo-calibrated uses; the report's figure of the trust region shows the "
            "spread of what the run clipped"
        )
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
