"""Curves over the position in the response: clipping, the spread of the log ratio, and the trust region."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ctpo.report.collection import Collection
from ctpo.report.figures.figure import Axis, Figure, Series, Values, drawn, has_values, over_seeds, thinned
from ctpo.runs.profiles import (
    Column,
    Histogram,
    Profile,
    pooled,
    pooled_histogram,
    read_profiles,
    sum_columns,
)

_LOWEST_SPREAD = 1e-4
"""The lower end of the spread's axis, as a share of the largest spread. Lower ones belong to tokens of which the policy
is certain, and would leave little room for the rest."""
_MOST_FRAMES, _FEWER_FRAMES, _MANY_GROUPS = 13, 7, 12
"""With more than `_MANY_GROUPS` groups, a figure has fewer frames, so that the page stays small."""
_POSITION = Axis(label="position in the response, tokens")
_LOG_POSITION = Axis(label="position in the response, tokens (log scale)", scale="log")
_CLIPPED = {
    "all": ("high", "low", "dual"), "upper limit": ("high",), "lower limit": ("low",), "dual clip": ("dual",)
}  # fmt: skip
"""The curves of clipped shares, and the counts that each adds up."""
_LIMITS = ("high", "low", "dual")
_LIMIT_NAMES = ("upper limit", "lower limit", "dual clip")

Frames = list[list[list[Profile]]]
"""The profiles by frame, group and run. The first frame pools all batches; the others are single batches."""


def figures(collection: Collection) -> list[Figure]:
    """Return the figures of the runs' position profiles; none if no run has any."""
    profiles = _profiles(collection)
    labels, frames = _frames(profiles)
    if not labels:
        return []
    x = pooled([each for group in profiles for run in group for each in run.values()]).positions
    several = len(collection.groups) > 1
    removed = _curves(frames, x, lambda profile: profile.columns["gradient_removed"])
    candidates = [
        _clip(labels, frames, x, several=several),
        Figure(
            id="gradient-by-position", section="position", title="Gradient removed, by position",
            text="Share of the sum of weight times advantage, in absolute values, that the trust region removed at "
            "each position. Each clipped token counts by its weight, so a few tokens with large ratios show here.",
            x=_POSITION, y=Axis(label="share of gradient", low=0, percent=True), frames=labels, series=removed,
        ),
        _spread(labels, frames, x),
        Figure(
            id="trust-region", section="position", title="Trust region over the log ratio",
            text="The log ratio that weights each token: its mean, with bands of one and two standard deviations. "
            "Dashed: the limits of the trust region. Where the bands leave the limits, tokens are clipped. Limits that "
            "grow as fast as the bands clip alike at every position.",
            x=_POSITION, y=Axis(label="log ratio, nats"), frames=labels, series=list(_trust_region(frames, x)),
            parts=("mean, ± 1 and 2 s.d.", *_LIMIT_NAMES), one_group=True,
        ),
        _histogram(labels, frames),
        _exponents(profiles),
    ]  # fmt: skip
    return [figure for figure in candidates if any(has_values(each.y) for each in figure.series)]


def _profiles(collection: Collection) -> list[list[dict[int, Profile]]]:
    """Return the profiles by group, run and batch, all with the same position bins.

    Runs whose bins differ from those of most runs are left out, and noted.
    """
    profiles = [[read_profiles(run) for run in group.runs] for group in collection.groups]
    by_run = list(zip(collection.runs, itertools.chain(*profiles), strict=True))
    usual = Counter(next(iter(each.values())).edge for _, each in by_run if each).most_common(1)
    for run, by_batch in by_run:
        if by_batch and next(iter(by_batch.values())).edge != usual[0][0]:
            run.notes.append(
                "profile.jsonl has other position bins than most runs; it is left out of the curves by position"
            )
            by_batch.clear()
    return profiles


def _frames(profiles: Sequence[Sequence[dict[int, Profile]]]) -> tuple[list[str], Frames]:
    """Return the names and the profiles of the frames: all batches pooled, then single batches."""
    batches = sorted({batch for group in profiles for run in group for batch in run})
    if not batches:
        return [], []
    most = _MOST_FRAMES if len(profiles) <= _MANY_GROUPS else _FEWER_FRAMES
    chosen = [batches[index] for index in thinned(len(batches), most)] if len(batches) > 1 else []
    frames = [[[pooled(list(run.values())) for run in group if run] for group in profiles]]
    frames += [[[run[batch] for run in group if batch in run] for group in profiles] for batch in chosen]
    return ["all batches", *(f"batch {batch}" for batch in chosen)], frames


def _groups(frames: Frames) -> Iterator[tuple[int, int, list[Profile]]]:
    """Yield the indices of each frame and group that has profiles, and those."""
    for frame, groups in enumerate(frames):
        for group, profiles in enumerate(groups):
            if profiles:
                yield frame, group, profiles


def _curves(
    frames: Frames,
    x: Column,
    values: Callable[[Profile], Column],
    part: int | None = None,
    *,
    counted: bool = False,
) -> list[Series]:
    """Return one curve per frame and group: the mean ± standard error of these values over the group's seeds.

    With `counted`, each point carries the number of tokens behind it.
    """
    series = []
    for frame, group, profiles in _groups(frames):
        band = over_seeds([values(profile) for profile in profiles])
        if has_values(band.mean):
            counts = sum_columns([profile.columns["count"] for profile in profiles]) if counted else None
            series.append(
                Series(
                    group=group, frame=frame, part=part, x=x, y=band.mean, token_counts=counts,
                    low=drawn(band.low), high=drawn(band.high),
                )
            )  # fmt: skip
    return series


def _clip(labels: list[str], frames: Frames, x: Column, *, several: bool) -> Figure:
    """Return the clipped shares: of several groups the whole share, of a single one its parts as well."""
    text = (
        "Share of the tokens at each position whose gradient was clipped. The log ratio of a prefix spreads with its "
        "length, so a fixed band clips late tokens more often. A band that grows as √t clips alike everywhere if token "
        "ratios are independent. Point at a curve for the number of tokens; late positions may have few."
    )
    if several:
        series = _curves(frames, x, lambda profile: profile.share(_CLIPPED["all"]), counted=True)
    else:
        series = [
            each
            for part, names in enumerate(_CLIPPED.values())
            for each in _curves(frames, x, partial(Profile.share, names=names), part, counted=True)
        ]
    return Figure(
        id="clip-by-position", section="position", title="Clip fraction by position", text=text, x=_POSITION,
        y=Axis(label="share of tokens clipped", low=0, percent=True), series=series, frames=labels,
        parts=() if several else list(_CLIPPED),
    )  # fmt: skip


def _spread(labels: list[str], frames: Frames, x: Column) -> Figure:
    curves = _curves(frames, x, lambda profile: profile.columns["log_ratio_std"])
    by_place = {(curve.frame, curve.group): curve for curve in curves}
    series = list(curves)
    for frame, group, profiles in _groups(frames):
        curve = by_place.get((frame, group))
        if curve is not None:
            line = _square_root_line(curve.x, curve.y, profiles[0].columns["count"])
            series.append(
                Series(group=group, frame=frame, x=curve.x, y=line, role="reference", name="√t line")
            )
    tops = [value for curve in curves if curve.frame == 0 for value in curve.y if value]
    return Figure(
        id="spread-by-position", section="position", title="Spread of the prefix's log ratio",
        text="Standard deviation of the cumulative log ratio log ρ_t at each position. On log scales a power of t is "
        "a straight line. Dashed: growth as √t, as if token ratios were independent. If the curve is steeper, a √t "
        "band clips late tokens more often.",
        x=_LOG_POSITION, y=Axis(
            label="standard deviation, nats (log scale)", scale="log", low=max(tops, default=1.0) * _LOWEST_SPREAD
        ), series=series,
        frames=labels,
    )  # fmt: skip


def _square_root_line(x: Values, y: Values, counts: Column) -> list[float | None]:
    """Return s √t at each position t, with the s that fits y best in log space, bins weighted by their tokens."""
    terms = [
        (math.log(std) - 0.5 * math.log(t), count)
        for t, std, count in zip(x, y, counts, strict=True)
        if t and std and count
    ]
    weight = math.fsum(count for _, count in terms)
    if not weight:
        return [None] * len(x)
    scale = math.exp(math.fsum(term * count for term, count in terms) / weight)
    return [None if t is None else scale * math.sqrt(t) for t in x]


def _trust_region(frames: Frames, x: Column) -> Iterator[Series]:
    """Yield the bands of the log ratio and the limits of the trust region, for each frame and group."""
    for frame, group, profiles in _groups(frames):
        mean = over_seeds([profile.columns["weight_mean"] for profile in profiles]).mean
        std = over_seeds([profile.columns["weight_std"] for profile in profiles]).mean
        if not has_values(mean):
            continue
        for width in (2.0, 1.0):
            yield Series(
                group=group, frame=frame, part=0, x=x, y=mean, low=_shifted(mean, std, -width),
                high=_shifted(mean, std, width), name=f"± {width:g} s.d.",
            )  # fmt: skip
        for part, name in enumerate(_LIMITS, start=1):
            limit = over_seeds([profile.limits.get(name, []) for profile in profiles]).mean
            if has_values(limit):
                yield Series(group=group, frame=frame, part=part, x=x, y=limit, role="limit")


def _shifted(mean: Values, std: Values, by: float) -> list[float | None]:
    return [None if m is None or s is None else m + by * s for m, s in zip(mean, std, strict=True)]


def _histogram(labels: list[str], frames: Frames) -> Figure:
    """Return the share of tokens per cell, with the limits at the first and last positions as vertical lines."""
    series = []
    for frame, group, profiles in _groups(frames):
        histogram = pooled_histogram([profile.histogram for profile in profiles])
        if histogram is None:
            continue
        x, y = _outline(histogram)
        series.append(Series(group=group, frame=frame, part=0, x=x, y=y))
        top = max(value for value in y if value is not None)
        for part, name in enumerate(_LIMITS, start=1):
            mean = over_seeds([profile.limits.get(name, []) for profile in profiles]).mean
            for value, where in _ends([value for value in mean if value is not None]):
                series.append(
                    Series(
                        group=group, frame=frame, part=part, role="limit", name=where,
                        x=[value, value], y=[0.0, top],
                    )
                )  # fmt: skip
    return Figure(
        id="ratio-histogram", section="position", title="Distribution of the log ratio",
        text="Tokens of all positions by the log ratio that weights them. Every second cell is twice as wide, so the "
        "axis is logarithmic on both sides of 0. Dashed: the limits of the trust region at the first and last "
        "positions. A token outside of a limit is clipped if its advantage has the sign that the limit is for.",
        x=Axis(label="log ratio, nats (log scale on both sides)", scale="symlog"),
        y=Axis(label="share of tokens in the cell", low=0, percent=True), series=series, frames=labels,
        parts=("log ratio", *_LIMIT_NAMES), one_group=True,
    )  # fmt: skip


def _ends(limit: Sequence[float]) -> list[tuple[float, str]]:
    """Return a limit's first and last value with a name each; a single one without a name if they are equal."""
    if not limit:
        return []
    if math.isclose(limit[0], limit[-1]):
        return [(limit[0], "")]
    return [(limit[0], "first positions"), (limit[-1], "last positions")]


def _outline(histogram: Histogram) -> tuple[Values, Values]:
    """Return a histogram as a curve of steps, two points per cell; y is the share of tokens.

    The open cells at the ends are drawn as wide as their neighbours. Empty cells are left out at both ends, but for
    one each.
    """
    edges, counts = histogram.edges, histogram.counts
    total = math.fsum(counts)
    full = [i for i, count in enumerate(counts) if count]
    first, last = max(full[0] - 1, 0), min(full[-1] + 1, len(counts) - 1)
    ends = [2 * edges[0] - edges[1], *edges, 2 * edges[-1] - edges[-2]]
    x = [end for i in range(first, last + 1) for end in (ends[i], ends[i + 1])]
    y = [counts[i] / total for i in range(first, last + 1) for _ in range(2)]
    return x, y


def _exponents(profiles: Sequence[Sequence[dict[int, Profile]]]) -> Figure:
    series = []
    for group, runs in enumerate(profiles):
        batches = sorted({batch for run in runs for batch in run})
        band = over_seeds(
            [[run[batch].power if batch in run else None for batch in batches] for run in runs if run]
        )
        if has_values(band.mean):
            series.append(
                Series(group=group, x=batches, y=band.mean, low=drawn(band.low), high=drawn(band.high))
            )
            series.append(
                Series(group=group, x=[batches[0], batches[-1]], y=[0.5, 0.5], role="reference", name="√t")
            )
    return Figure(
        id="spread-exponent", section="position", title="How fast the spread grows",
        text="Exponent p of the fit std(log ρ_t) = s·t^p in each rollout batch. At 0.5 (dashed) token ratios behave as "
        "if they were independent, which a √t band assumes. Above 0.5, the ratios of a response drift together.",
        x=Axis(label="rollout batches", low=0, whole=True), y=Axis(label="exponent p"), series=series,
    )  # fmt: skip
