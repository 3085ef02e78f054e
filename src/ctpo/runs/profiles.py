"""A run's position profiles (`profile.jsonl`), checked, pooled over its batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ctpo.runs.reader import Record, Run, number, numbers

Column = list[float | None]
_MEANS = ("position_mean", "gradient_removed")
_COUNTS = ("count", "high", "low", "dual")
_MOMENTS = ("log_ratio_mean", "log_ratio_std", "weight_mean", "weight_std")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Statistics by position bin: of one rollout batch, or pooled over several."""

    edge: tuple[float, ...]
    """Upper ends of the bins, in tokens; a bin starts after the one before it."""
    columns: dict[str, Column]
    """Of `profile.jsonl`'s names; None where a bin holds no token."""
    limits: dict[str, Column]
    """`low`, `high`, `dual` of the trust region, in log space; absent where there is none."""
    histogram: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Edges, and counts of the weighing log ratio (one more: the outer cells are open)."""
    power: float | None
    """Exponent p of the fit std = s t^p."""

    @property
    def positions(self) -> Column:
        """Mean positions of the bins' tokens (their middles where the file does not say); None for an empty bin."""
        starts = (0.0, *self.edge[:-1])
        middles = [(start + 1 + end) / 2 for start, end in zip(starts, self.edge, strict=True)]
        columns = zip(middles, self.columns["position_mean"], self.columns["count"], strict=True)
        return [(middle if mean is None else mean) if count else None for middle, mean, count in columns]

    def share(self, names: Sequence[str]) -> Column:
        """These counts together, divided by the number of tokens."""
        counts = self.columns["count"]
        parts = [self.columns[name] for name in names]
        return [
            sum(part[i] or 0.0 for part in parts) / count if count else None for i, count in enumerate(counts)
        ]


def read_profiles(run: Run) -> dict[int, Profile]:
    """The run's profiles by rollout batch; those that are not whole are left out and noted."""
    found, damaged = {}, 0
    for record in run.profiles:
        profile = _profile(record)
        if profile is None:
            damaged += 1
        else:
            found[int(record["batch"])] = profile
    if damaged:
        run.notes.append(f"profile.jsonl: {damaged} profiles are not whole and left out")
    edges = {profile.edge for profile in found.values()}
    if len(edges) > 1:
        newest = found[max(found)].edge
        dropped = [batch for batch, profile in found.items() if profile.edge != newest]
        run.notes.append(f"profile.jsonl: {len(dropped)} profiles with other position bins are left out")
        found = {batch: profile for batch, profile in found.items() if batch not in dropped}
    return found


def pooled(profiles: Sequence[Profile]) -> Profile:
    """All the tokens of several batches together; the profiles must have the same bins.

    Means and standard deviations are those of the union, from first and second moments; limits and exponents are
    averaged.
    """
    first = profiles[0]
    if len(profiles) == 1:
        return first
    weights = [profile.columns["count"] for profile in profiles]
    columns = {name: _sum([profile.columns[name] for profile in profiles]) for name in _COUNTS}
    for name in ("log_ratio", "weight"):
        means = [profile.columns[f"{name}_mean"] for profile in profiles]
        stds = [profile.columns[f"{name}_std"] for profile in profiles]
        squares = [
            [None if m is None or s is None else m * m + s * s for m, s in zip(mean, std, strict=True)]
            for mean, std in zip(means, stds, strict=True)
        ]
        mean = _average(means, weights)
        columns[f"{name}_mean"] = mean
        columns[f"{name}_std"] = [
            None if m is None or q is None else math.sqrt(max(q - m * m, 0.0))
            for m, q in zip(mean, _average(squares, weights), strict=True)
        ]
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
        power=sum(powers) / len(powers) if powers else None,
    )


Histogram = tuple[tuple[float, ...], tuple[float, ...]]


def pooled_histogram(histograms: Sequence[Histogram | None]) -> Histogram | None:
    """The sum of those that have the edges of the first; None where there is none."""
    known = [each for each in histograms if each is not None]
    if not known:
        return None
    same = [counts for edges, counts in known if edges == known[0][0]]
    return known[0][0], tuple(map(math.fsum, zip(*same, strict=True)))


def _profile(record: Record) -> Profile | None:
    told = numbers(record.get("edge"))
    edge = [each for each in told if each is not None]
    if not edge or len(edge) < len(told) or edge[0] < 1 or any(a >= b for a, b in itertools.pairwise(edge)):
        return None
    columns = {name: numbers(record.get(name)) for name in (*_COUNTS, *_MOMENTS, *_MEANS)}
    for name in (*_COUNTS, "position_mean", "log_ratio_std", "weight_std"):
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
        power=number(record.get("spread_power")),
    )


def _histogram(told: object) -> Histogram | None:
    if not isinstance(told, dict):
        return None
    edges, counts = numbers(told.get("edge")), numbers(told.get("count"))
    if None in edges or None in counts or len(counts) != len(edges) + 1 or len(edges) < 2 or not any(counts):
        return None
    return tuple(float(e or 0.0) for e in edges), tuple(float(c or 0.0) for c in counts)


def _sum(columns: Sequence[Column]) -> Column:
    return [math.fsum(value or 0.0 for value in values) for values in zip(*columns, strict=True)]


def _average(columns: Sequence[Column], weights: Sequence[Column]) -> Column:
    """Weighted by the bins' token counts; places without a value are not counted."""
    averaged: Column = []
    for values, counts in zip(zip(*columns, strict=True), zip(*weights, strict=True), strict=True):
        known = [
            (value, count) for value, count in zip(values, counts, strict=True) if value is not None and count
        ]
        total = math.fsum(count for _, count in known)
        averaged.append(math.fsum(value * count for value, count in known) / total if total else None)
    return averaged
