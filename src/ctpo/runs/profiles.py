"""A run's position profiles (`profile.jsonl`): read from the file, checked, and pooled over rollout batches.

The training run writes one line per rollout batch (`ctpo.training.diagnostics`); docs/reference/diagnostics.md
describes its keys. A report reads with `read_profiles`, which leaves damaged lines out and notes them. `ctpo calibrate`
reads with `read_checked_profiles`, which refuses them, because a fit must not silently rest on a part of the run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.runs.directory import RunDirectory, read_records
from ctpo.runs.reader import Record, Run, number, numbers

Column = list[float | None]
"""One value per position bin; None where the bin holds no token or the file has no value."""

SPLIT: Final = tuple(f"gradient_{name}" for name in ("signal", "pull", "signal_along", "pull_along"))
"""Columns of the split of the gradient's coefficients into signal and pull."""
_MEANS: Final = (
    *("position_mean", "ess", "gradient_ess", *SPLIT),
    *("gradient_removed", "gradient_removed_gain", "gradient_removed_harm", "gradient_removed_weighted"),
    *("critic_explained_variance", "critic_value_loss", "critic_value_mean", "critic_return_mean"),
)
_COUNTS: Final = ("count", "high", "low", "dual", "gain_count", "gain_clipped", "harm_clipped")
_SPREAD: Final = ("spread", "spread_count")
"""Columns that earlier releases did not write. Their `log_ratio_std` is of all updates of a rollout batch together."""
_MOMENTS: Final = ("log_ratio_mean", "log_ratio_std", "weight_mean", "weight_std")
_CALIBRATED: Final = (*("count", "high", "low", "dual", "position_mean", "log_ratio_mean", "log_ratio_std"),)
"""Columns without which there is nothing to calibrate."""


@dataclass(frozen=True)
class Histogram:
    """Counts of tokens by the log ratio that weights them, over all positions."""

    edges: tuple[float, ...]
    """Upper edges of all cells but the last, nats. The first and the last cell are open."""
    counts: tuple[float, ...]
    """Tokens per cell; one more entry than `edges`."""


@dataclass(frozen=True)
class SignedHistogram:
    """Counts of tokens by cumulative log ratio, by position bin and by the sign of the advantage."""

    edges: tuple[float, ...]
    """Upper edges of all cells but the last, nats."""
    gain: tuple[tuple[float, ...], ...]
    """Tokens with a positive advantage, [bins][cells]."""
    harm: tuple[tuple[float, ...], ...]
    """Tokens with a negative advantage, [bins][cells]."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Statistics by position bin, of one rollout batch or pooled over several."""

    edge: tuple[float, ...]
    """Upper ends of the bins, in tokens; a bin starts after the end of the one before it."""
    columns: dict[str, Column]
    """The columns of `profile.jsonl` by name."""
    limits: dict[str, Column]
    """`low`, `high`, `dual` of the trust region, in log space; absent where there is none."""
    histogram: Histogram | None
    signed: SignedHistogram | None
    power: float | None
    """Exponent p of the fit std = s t^p."""
    within: bool
    """Whether the spread is measured within updates; False in files of earlier releases, which pooled them."""
    updates: dict[str, Column]
    """The figures of each update of the rollout batch, in order; empty if pooled, or written by an earlier release."""

    @property
    def spread(self) -> Column:
        """The standard deviation of the cumulative log ratio: within updates, or of all in an old file."""
        return self.columns["spread" if self.within else "log_ratio_std"]

    @property
    def positions(self) -> Column:
        """The mean position of each bin's tokens, or the bin's middle if the file does not give it; None if empty."""
        starts = (0.0, *self.edge[:-1])
        middles = [(start + 1 + end) / 2 for start, end in zip(starts, self.edge, strict=True)]
        columns = zip(middles, self.columns["position_mean"], self.columns["count"], strict=True)
        return [(middle if mean is None else mean) if count else None for middle, mean, count in columns]

    def share(self, names: Sequence[str]) -> Column:
        """Return the sum of these count columns, divided by the number of tokens."""
        counts = self.columns["count"]
        parts = [self.columns[name] for name in names]
        return [
            sum(part[i] or 0.0 for part in parts) / count if count else None for i, count in enumerate(counts)
        ]


def read_profiles(run: Run) -> dict[int, Profile]:
    """Return the run's profiles by rollout batch. Those that cannot be used are left out and noted in `run.notes`."""
    profiles, damaged = {}, 0
    for record in run.profiles:
        profile = _profile(record)
        if profile is None:
            damaged += 1
        else:
            profiles[int(record["batch"])] = profile
    if damaged:
        run.notes.append(f"profile.jsonl: {damaged} damaged profiles are left out")
    edges = {profile.edge for profile in profiles.values()}
    if len(edges) > 1:
        newest = profiles[max(profiles)].edge
        dropped = [batch for batch, profile in profiles.items() if profile.edge != newest]
        run.notes.append(f"profile.jsonl: {len(dropped)} profiles with other position bins are left out")
        profiles = {batch: profile for batch, profile in profiles.items() if batch not in dropped}
    return profiles


def read_checked_profiles(run: RunDirectory) -> dict[int, Profile]:
    """Return the run's profiles by rollout batch, the oldest first.

    Raises:
        UserError: if there is no run, no profile, or a line that cannot be used.
    """
    if not run.path.is_dir():
        raise UserError(f"{run.path} is not a run (no such directory); give a run's directory")
    if not run.profile.is_file():
        raise UserError(
            f"{run.path} has no {run.profile.name}: it ran without diagnostics, or has not finished a rollout batch; "
            "train with diagnostics=true"
        )
    lines = read_records(run.profile)
    if not lines:
        raise UserError(f"{run.profile} holds no whole line; let the run finish a rollout batch")
    profiles = {}
    for place, line in enumerate(lines, start=1):
        _check(run.profile, place, line, lines[0])
        profile = _profile(line)
        if profile is None or profile.signed is None:
            raise UserError(
                f"{run.profile} line {place} is damaged (its bins or its histogram do not fit); take the line out"
            )
        profiles[int(line["batch"])] = profile
    return profiles


def pooled(profiles: Sequence[Profile]) -> Profile:
    """Return one profile of all the tokens of several rollout batches, which must have the same bins.

    Counts are added. Means and standard deviations are those of all tokens together. Limits and exponents are
    averaged.
    """
    first = profiles[0]
    if len(profiles) == 1:
        return first
    weights = [profile.columns["count"] for profile in profiles]
    columns = {name: sum_columns([profile.columns[name] for profile in profiles]) for name in _COUNTS}
    for name in ("log_ratio", "weight"):
        means = [profile.columns[f"{name}_mean"] for profile in profiles]
        stds = [profile.columns[f"{name}_std"] for profile in profiles]
        centre = _average(means, weights)
        squares = [_squares(mean, std, centre) for mean, std in zip(means, stds, strict=True)]
        columns[f"{name}_mean"] = centre
        columns[f"{name}_std"] = [None if q is None else math.sqrt(q) for q in _average(squares, weights)]
    freedom = [profile.columns["spread_count"] for profile in profiles]
    variances = [[None if s is None else s * s for s in profile.columns["spread"]] for profile in profiles]
    columns["spread"] = [None if v is None else math.sqrt(v) for v in _average(variances, freedom)]
    columns["spread_count"] = sum_columns(freedom)
    for name in _MEANS:
        columns[name] = _average([profile.columns[name] for profile in profiles], weights)
    names = {name for profile in profiles for name in profile.limits}
    empty: Column = [None] * len(first.edge)
    powers = [profile.power for profile in profiles if profile.power is not None]
    return Profile(
        edge=first.edge,
        columns=columns,
        limits={
            name: _average([profile.limits.get(name, empty) for profile in profiles], weights)
            for name in names
        },
        histogram=pooled_histogram([profile.histogram for profile in profiles]),
        signed=_pooled_signed([profile.signed for profile in profiles]),
        power=sum(powers) / len(powers) if powers else None,
        within=all(profile.within for profile in profiles),
        updates={},
    )


def pooled_histogram(histograms: Sequence[Histogram | None]) -> Histogram | None:
    """Return the sum of the histograms that have the edges of the first one; None if there is none."""
    known = [each for each in histograms if each is not None]
    if not known:
        return None
    edges = known[0].edges
    same = [each.counts for each in known if each.edges == edges]
    return Histogram(edges, tuple(map(math.fsum, zip(*same, strict=True))))


def _pooled_signed(histograms: Sequence[SignedHistogram | None]) -> SignedHistogram | None:
    """Return the sum of the histograms; None if one is missing or has other edges, as its tokens would be lost."""
    known = [each for each in histograms if each is not None]
    if len(known) < len(histograms) or any(each.edges != known[0].edges for each in known):
        return None
    gain, harm = (
        tuple(tuple(map(sum, zip(*rows, strict=True))) for rows in zip(*sides, strict=True))
        for sides in ([each.gain for each in known], [each.harm for each in known])
    )
    return SignedHistogram(known[0].edges, gain, harm)


def _check(path: Path, place: int, line: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Refuse a line that a calibration cannot use."""
    where = f"{path} line {place}"
    try:
        bins = len(line["edge"])
        signed = line["log_ratio_histogram"]
        cells = len(signed["edge"]) + 1
        needed = (*_CALIBRATED, *(_SPREAD if "spread" in line else ()))
        wrong = [name for name in needed if len(line[name]) != bins]
        wrong += [
            side for side in ("gain", "harm") if any(len(row) not in (0, cells) for row in signed[side])
        ]
        finite = all(math.isfinite(x) for name in needed for x in line[name] if x is not None)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where} lacks figures ({error}); it was written by another version, or by hand"
        ) from None
    if wrong:
        raise UserError(f"{where} is damaged ({wrong[0]} does not fit {bins} bins); take the line out")
    if not finite:
        raise UserError(f"{where} holds a figure that is not finite; take the line out")
    if line["edge"] != first["edge"] or signed["edge"] != first["log_ratio_histogram"]["edge"]:
        raise UserError(f"{where} has other bins than line 1; calibrate on lines of one kind")


def _profile(record: Record) -> Profile | None:
    """Return one line as a profile; None if its bins or counts are damaged. Other damaged columns are left empty."""
    ends = numbers(record.get("edge"))
    edge = [each for each in ends if each is not None]
    if not edge or len(edge) < len(ends) or edge[0] < 1 or any(a >= b for a, b in itertools.pairwise(edge)):
        return None
    columns = {name: numbers(record.get(name)) for name in (*_COUNTS, *_MOMENTS, *_MEANS, *_SPREAD)}
    if "spread" not in record:  # earlier releases weighted what was removed
        columns["gradient_removed_weighted"] = columns.pop("gradient_removed")
        columns["gradient_removed"] = []
    for name in (*_COUNTS, *_SPREAD, "position_mean", "log_ratio_std", "weight_std"):
        columns[name] = [None if value is None or value < 0 else value for value in columns[name]]
    for name, column in columns.items():
        if len(column) != len(edge):
            if name in ("count", "high", "low"):
                return None
            columns[name] = [None] * len(edge)
    band = record.get("band")
    limits = {
        name: column
        for name in ("low", "high", "dual")
        if isinstance(band, dict) and len(column := numbers(band.get(name))) == len(edge)
    }
    return Profile(
        edge=tuple(edge),
        columns=columns,
        limits=limits,
        histogram=_histogram(record.get("histogram")),
        signed=_signed(record.get("log_ratio_histogram"), len(edge)),
        power=number(record.get("spread_power")),
        within="spread" in record,
        updates=_updates(record.get("updates")),
    )


def _updates(written: object) -> dict[str, Column]:
    """The figures of single updates; empty if their lists do not fit each other."""
    if not isinstance(written, dict):
        return {}
    columns = {str(name): numbers(column) for name, column in written.items()}
    length = len(columns.get("update", []))
    return columns if length and all(len(column) == length for column in columns.values()) else {}


def _histogram(written: object) -> Histogram | None:
    if not isinstance(written, dict):
        return None
    edges, counts = _all(written.get("edge")), _all(written.get("count"))
    if edges is None or counts is None or len(counts) != len(edges) + 1 or len(edges) < 2 or not any(counts):
        return None
    return Histogram(edges, counts)


def _signed(written: object, bins: int) -> SignedHistogram | None:
    if not isinstance(written, dict):
        return None
    edges = _all(written.get("edge"))
    if edges is None or len(edges) < 2:
        return None
    sides = []
    for name in ("gain", "harm"):
        rows = written.get(name)
        if not isinstance(rows, list) or len(rows) != bins:
            return None
        full = [
            _all(row) if row else (0.0,) * (len(edges) + 1) for row in rows
        ]  # an empty bin is written as []
        whole = [row for row in full if row is not None and len(row) == len(edges) + 1]
        if len(whole) < bins:
            return None
        sides.append(tuple(whole))
    return SignedHistogram(edges, *sides)


def _all(value: object) -> tuple[float, ...] | None:
    """Return the numbers of a list; None if it is no list or one of its values is no finite number."""
    column = numbers(value)
    known = tuple(each for each in column if each is not None)
    return known if column and len(known) == len(column) else None


def _squares(mean: Column, std: Column, centre: Column) -> Column:
    """Return the mean square distance of each bin's tokens from the pooled mean."""
    return [
        None if m is None or s is None or c is None else s * s + (m - c) ** 2
        for m, s, c in zip(mean, std, centre, strict=True)
    ]


def sum_columns(columns: Sequence[Column]) -> Column:
    """Return the sum of the columns, with 0 for missing values."""
    return [math.fsum(value or 0.0 for value in values) for values in zip(*columns, strict=True)]


def _average(columns: Sequence[Column], weights: Sequence[Column]) -> Column:
    """Return the mean of the columns, weighted by the bins' token counts; a missing value is left out."""
    averaged: Column = []
    for values, counts in zip(zip(*columns, strict=True), zip(*weights, strict=True), strict=True):
        known = [
            (value, count) for value, count in zip(values, counts, strict=True) if value is not None and count
        ]
        total = math.fsum(count for _, count in known)
        averaged.append(math.fsum(value * count for value, count in known) / total if total else None)
    return averaged
