"""Curves over the position in the response: clipping, the spread of the log ratio, the trust region over it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ctpo.report.collection import Collection
from ctpo.report.figures.figure import Axis, Figure, Series, Values, has_values, over_seeds, thinned
from ctpo.runs.profiles import Column, Profile, pooled, pooled_histogram, read_profiles

_DECADES = 1e4
"""Spreads further below the largest are of tokens that the policy is certain of, and leave the plot."""
_MOST_FRAMES, _FEWER_FRAMES, _MANY_GROUPS = 13, 7, 12
_POSITION = Axis(label="position in the response, tokens")
_LOG_POSITION = Axis(label="position in the response, tokens (log scale)", scale="log")

Frames = list[list[list[Profile]]]
"""[frame][group] → a profile for each of the group's runs."""


def figures(collection: Collection) -> list[Figure]:
    """Everything that the runs' position profiles show; nothing where no run has any."""
    profiles = _profiles(collection)
    labels, frames = _frames(profiles)
    if not labels:
        return []
    x = pooled([profile for group in profiles for p in group for profile in p.values()]).positions
    several = len(collection.groups) > 1
    removed = _curves(frames, x, lambda profile: profile.columns["gradient_removed"])
    found = [
        _clip(labels, frames, x, several=several),
        Figure(
            id="gradient-by-position", section="position", title="Gradient removed, by position",
            text="Share of the tokens' weights times advantages that the trust region took away at each position. It "
            "counts clipped tokens by what they weigh, so a few clipped tokens with large ratios show here.",
            x=_POSITION, y=Axis(label="share of gradient", low=0, percent=True), frames=labels, series=removed,
        ),
        _spread(labels, frames, x),
        Figure(
            id="trust-region", section="position", title="Trust region over the log ratio",
            text="The log ratio that weighs each token: its mean with one and two standard deviations around it, and "
            "the limits of the trust region (dashed). Limits that grow as the spread does clip alike everywhere; where "
            "the bands leave the limits, tokens are clipped.",
            x=_POSITION, y=Axis(label="log ratio, nats"), frames=labels, series=list(_trust(frames, x)),
            parts=_TRUST_PARTS, one_group=True,
        ),
        _histogram(labels, frames),
        _exponents(profiles),
    ]  # fmt: skip
    return [figure for figure in found if any(has_values(each.y) for each in figure.series)]


def _profiles(collection: Collection) -> list[list[dict[int, Profile]]]:
    """[group][run] by batch; runs whose position bins differ from most runs' are noted and left out."""
    profiles = [[read_profiles(run) for run in group.runs] for group in collection.groups]
    told = list(zip(collection.runs, itertools.chain(*profiles), strict=True))
    edges = Counter(next(iter(p.values())).edge for _, p in told if p).most_common(1)
    for run, p in told:
        if p and next(iter(p.values())).edge != edges[0][0]:
            run.notes.append(
                "profile.jsonl has other position bins than most runs; it is left out of the curves by position"
            )
            p.clear()
    return profiles


def _frames(profiles: Sequence[Sequence[dict[int, Profile]]]) -> tuple[list[str], Frames]:
    """All batches together, then single ones."""
    batches = sorted({batch for group in profiles for p in group for batch in p})
    if not batches:
        return [], []
    most = _MOST_FRAMES if len(profiles) <= _MANY_GROUPS else _FEWER_FRAMES
    chosen = [batches[index] for index in thinned(len(batches), most)] if len(batches) > 1 else []
    frames = [[[pooled(list(p.values())) for p in group if p] for group in profiles]]
    frames += [[[p[batch] for p in group if batch in p] for group in profiles] for batch in chosen]
    return ["all batches", *(f"batch {batch}" for batch in chosen)], frames


def _cells(frames: Frames) -> Iterator[tuple[int, int, list[Profile]]]:
    """(frame, group, its runs' profiles), where there are any."""
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
    """A curve a group and frame, mean ± standard error over its seeds."""
    series = []
    for frame, group, profiles in _cells(frames):
        band = over_seeds([values(profile) for profile in profiles])
        if has_values(band.mean):
            series.append(
                Series(
                    group=group, frame=frame, part=part, x=x, y=band.mean,
                    token_counts=_total([profile.columns["count"] for profile in profiles]) if counted else None,
                    low=band.low if has_values(band.low) else None,
                    high=band.high if has_values(band.high) else None,
                )
            )  # fmt: skip
    return series


def _total(columns: Sequence[Column]) -> Column:
    return [math.fsum(value or 0.0 for value in values) for values in zip(*columns, strict=True)]


_CLIPPED = {
    "all": ("high", "low", "dual"), "upper limit": ("high",), "lower limit": ("low",), "dual clip": ("dual",)
}  # fmt: skip


def _clip(labels: list[str], frames: Frames, x: Column, *, several: bool) -> Figure:
    text = (
        "Share of the tokens at each position whose gradient was clipped. A fixed band clips late tokens more and more "
        "often, as the log ratio of the prefix spreads; a band that grows as √t keeps level where token ratios "
        "are independent. Pointing shows how many tokens a share is of: the latest positions may hold few."
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
    series = _curves(frames, x, lambda profile: profile.columns["log_ratio_std"])
    for frame, group, profiles in _cells(frames):
        told = next((each for each in series if (each.frame, each.group) == (frame, group)), None)
        if told is not None:
            series.append(
                Series(
                    group=group, frame=frame, x=told.x, y=_root_line(told.x, told.y, profiles[0].columns["count"]),
                    role="reference", name="√t line",
                )
            )  # fmt: skip
    tops = [value for each in series if each.frame == 0 and each.role == "line" for value in each.y if value]
    return Figure(
        id="spread-by-position", section="position", title="Spread of the prefix's log ratio",
        text="Standard deviation of the cumulative log ratio log ρ_t at each position, on log scales, where a power of "
        "t is a straight line. Dashed: growth as √t, as if token ratios were independent. Steeper than "
        "that, and a √t band clips late tokens more often.",
        x=_LOG_POSITION, y=Axis(
            label="standard deviation, nats (log scale)", scale="log", low=max(tops, default=1.0) / _DECADES
        ), series=series,
        frames=labels,
    )  # fmt: skip


def _root_line(x: Values, y: Values, counts: Column) -> list[float | None]:
    """s √t with the s that fits best in log space, bins weighted by their tokens."""
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


_TRUST_PARTS = ("mean, ± 1 and 2 s.d.", "upper limit", "lower limit", "dual clip")


def _trust(frames: Frames, x: Column) -> Iterator[Series]:
    for frame, group, profiles in _cells(frames):
        mean = over_seeds([profile.columns["weight_mean"] for profile in profiles]).mean
        std = over_seeds([profile.columns["weight_std"] for profile in profiles]).mean
        if not has_values(mean):
            continue
        for width in (2.0, 1.0):
            yield Series(
                group=group, frame=frame, part=0, x=x, y=mean, low=_shifted(mean, std, -width),
                high=_shifted(mean, std, width), name=f"± {width:g} s.d.",
            )  # fmt: skip
        for part, name in enumerate(("high", "low", "dual"), start=1):
            limit = over_seeds([profile.limits.get(name, []) for profile in profiles]).mean
            if has_values(limit):
                yield Series(group=group, frame=frame, part=part, x=x, y=limit, role="limit")


def _shifted(mean: Values, std: Values, by: float) -> list[float | None]:
    return [None if m is None or s is None else m + by * s for m, s in zip(mean, std, strict=True)]


_HISTOGRAM_PARTS = ("log ratio", "upper limit", "lower limit", "dual clip")


def _histogram(labels: list[str], frames: Frames) -> Figure:
    """Shares of cells; the limits of the first and of the last bin as vertical lines, for they depend on t."""
    series = []
    for frame, group, profiles in _cells(frames):
        pooled_counts = pooled_histogram([profile.histogram for profile in profiles])
        if pooled_counts is None:
            continue
        x, y = _steps(pooled_counts.edges, pooled_counts.counts)
        series.append(Series(group=group, frame=frame, part=0, x=x, y=y))
        top = max(value for value in y if value is not None)
        for part, name in enumerate(("high", "low", "dual"), start=1):
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
        text="Tokens of all positions by the log ratio that weighs them, in cells that double every second one: the "
        "axis is logarithmic on both sides of 0. Dashed: the trust region's limits at the first and last positions. "
        "What lies outside of them is clipped where the advantage has the sign that matters.",
        x=Axis(label="log ratio, nats (log scale on both sides)", scale="symlog"),
        y=Axis(label="share of tokens in the cell", low=0, percent=True), series=series, frames=labels,
        parts=_HISTOGRAM_PARTS, one_group=True,
    )  # fmt: skip


def _ends(limit: Sequence[float]) -> list[tuple[float, str]]:
    if not limit:
        return []
    if math.isclose(limit[0], limit[-1]):
        return [(limit[0], "")]
    return [(limit[0], "first positions"), (limit[-1], "last positions")]


def _steps(edges: Sequence[float], counts: Sequence[float]) -> tuple[Values, Values]:
    """A curve with steps, two points a cell; the open cells at the ends are drawn as wide as their neighbours.

    Empty cells beyond the outermost full ones are left out.
    """
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
        batches = sorted({batch for p in runs for batch in p})
        band = over_seeds([[p[b].power if b in p else None for b in batches] for p in runs if p])
        if has_values(band.mean):
            series.append(
                Series(
                    group=group, x=batches, y=band.mean, low=band.low if has_values(band.low) else None,
                    high=band.high if has_values(band.high) else None,
                )
            )  # fmt: skip
            series.append(
                Series(group=group, x=[batches[0], batches[-1]], y=[0.5, 0.5], role="reference", name="√t")
            )
    return Figure(
        id="spread-exponent", section="position", title="How fast the spread grows",
        text="Exponent p of the fit std(log ρ_t) = s·t^p in each rollout batch. At 0.5 (dashed) token ratios behave as "
        "independent ones, which is what a √t band assumes; above it they drift together.",
        x=Axis(label="rollout batches", low=0, whole=True), y=Axis(label="exponent p"), series=series,
    )  # fmt: skip
