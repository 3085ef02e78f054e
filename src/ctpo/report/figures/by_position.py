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
_MOST_UPDATES = 240
_POSITION = Axis(label="position in the response, tokens", low=0)
_LOG_POSITION = Axis(label="position in the response, tokens (log scale)", scale="log")
_CLIPPED = {
    "all": ("high", "low", "dual"), "upper limit": ("high",), "lower limit": ("low",), "dual clip": ("dual",)
}  # fmt: skip
"""The curves of clipped shares, and the counts that each adds up."""
_POOLED = (
    " Some of these runs were recorded by an earlier release, which pooled the updates of a rollout batch. Their means "
    "differ, so the spread of those runs grows too fast."
)
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
    old = any(not each.within for group in profiles for run in group for each in run.values())
    candidates = [
        _clip(labels, frames, x, several=several),
        _by_sign(labels, frames, x),
        Figure(
            id="gradient-by-position", section="position", title="Gradient removed, by position",
            text="Share of the gradient that the trust region removed at each position. Each token counts by the size "
            "of its advantage, whatever its weight, so tokens clipped at the lower limit count as well.",
            x=_POSITION, y=Axis(label="share of gradient", low=0, percent=True), frames=labels, pooled=True,
            series=removed,
        ),
        _spread(labels, frames, x, old=old),
        _mean(labels, frames, x),
        _effective(labels, frames, x),
        _split(labels, frames, x),
        Figure(
            id="trust-region", section="position", title="Trust region over the log ratio",
            text="The log ratio that weights each token: its mean, with bands of one and two standard deviations. "
            "Dashed: the limits of the trust region. Where the bands leave the limits, tokens are clipped. Limits that "
            "grow as fast as the bands clip alike at every position.",
            x=_POSITION, y=Axis(label="log ratio, nats"), frames=labels, pooled=True,
            series=list(_trust_region(frames, x)),
            parts=("mean, ± 1 and 2 s.d.", *_LIMIT_NAMES), one_group=True,
        ),
        Figure(
            id="critic-by-position", section="position", title="Variance that the critic explains, by position",
            text="How much of the variance of the returns the critic's values explain at each position, before it "
            "learned from the batch. It usually grows towards the end, where less is open. "
            "All batches together show the mean.",
            x=_POSITION, y=Axis(label="share of variance", percent=True), frames=labels, pooled=True,
            series=_curves(frames, x, partial(_column, name="critic_explained_variance")),
        ),
        Figure(
            id="critic-loss-by-position", section="position", title="Loss of the critic, by position",
            text="Half the mean squared distance of the critic's values from their targets at each position.",
            x=_POSITION, y=Axis(label="squared reward", low=0), frames=labels, pooled=True,
            series=_curves(frames, x, partial(_column, name="critic_value_loss")),
        ),
        _histogram(labels, frames),
        _exponents(profiles, old=old),
        _norms(profiles),
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
        y=Axis(label="share of tokens clipped", low=0, percent=True), series=series, frames=labels, pooled=True,
        parts=() if several else list(_CLIPPED),
    )  # fmt: skip


def _by_sign(labels: list[str], frames: Frames, x: Column) -> Figure:
    """Return the clipped shares of the tokens of either sign of the advantage, one group at a time."""

    def clipped(profile: Profile, side: str) -> Column:
        counts, gains = profile.columns["count"], profile.columns["gain_count"]
        of = [
            None if count is None or gain is None else gain if side == "gain" else count - gain
            for count, gain in zip(counts, gains, strict=True)
        ]
        cut = profile.columns[f"{side}_clipped"]
        return [None if part is None or not n else part / n for part, n in zip(cut, of, strict=True)]

    return Figure(
        id="clip-by-sign", section="position", title="Clip fraction by sign of the advantage, by position",
        text="Share of the tokens with a positive advantage that were clipped, and of those with a negative one. If "
        "one sign is cut far more often, what is left pushes the ratios the other way, whatever the reward says.",
        x=_POSITION, y=Axis(label="share of the sign's tokens", low=0, percent=True),
        series=[
            each
            for part, side in enumerate(("gain", "harm"))
            for each in _curves(frames, x, partial(clipped, side=side), part)
        ],
        frames=labels, pooled=True, parts=("positive advantage", "negative advantage"), one_group=True,
    )  # fmt: skip


def _mean(labels: list[str], frames: Frames, x: Column) -> Figure:
    """Return the mean of the prefix's log ratio, with the line of a constant drift per token."""
    series = _curves(frames, x, lambda profile: profile.columns["log_ratio_mean"])
    for curve in list(series):
        assert curve.group is not None
        assert curve.frame is not None
        counts = sum_columns([each.columns["count"] for each in frames[curve.frame][curve.group]])
        known = [
            (t, m, n) for t, m, n in zip(curve.x, curve.y, counts, strict=True) if t and m is not None and n
        ]
        slope = math.fsum(n * t * m for t, m, n in known) / (math.fsum(n * t * t for t, m, n in known) or 1.0)
        line = [None if t is None else slope * t for t in curve.x]
        series.append(
            Series(group=curve.group, frame=curve.frame, x=curve.x, y=line, role="reference", name="−κt line")
        )
    return Figure(
        id="mean-by-position", section="position", title="Mean of the prefix's log ratio",
        text="Mean of log ρ_t at each position, over all updates. Dashed: a line through 0. Tokens drawn from the old "
        "policy lower the mean by their KL divergence each, so it falls as −κt, while the spread grows as √t. A "
        "band around 0 then clips late tokens more often.",
        x=_POSITION, y=Axis(label="mean log ratio, nats"), series=series, frames=labels, pooled=True,
    )  # fmt: skip


def _effective(labels: list[str], frames: Frames, x: Column) -> Figure:
    parts = ("ess", "gradient_ess")
    return Figure(
        id="ess-by-position", section="position", title="Effective sample size by position",
        text="The number of equally weighted tokens that would give as precise an estimate, as a share of the tokens "
        "of an update. After clipping, a cut token weighs nothing. If the first curve falls towards 0, a few tokens "
        "carry all the weight there.",
        x=_POSITION, y=Axis(label="share of tokens", low=0, high=1, percent=True),
        series=[
            each
            for part, name in enumerate(parts)
            for each in _curves(frames, x, partial(_column, name=name), part)
        ],
        frames=labels, pooled=True, parts=("all weights", "weights after clipping"), one_group=True,
    )  # fmt: skip


def _split(labels: list[str], frames: Frames, x: Column) -> Figure:
    parts = ("gradient_signal_along", "gradient_pull_along")
    return Figure(
        id="signal-and-pull", section="position", title="Signal and pull along the drift",
        text="How a token's coefficient acts on its log ratio: above 0 it takes the policy on away from the old one, "
        "below 0 back. The pull is the part that would be left if the rewards were dealt out at random, which only "
        "clipping makes. Where the pull is as large as the signal, the policy stops there for no reason of the reward.",
        x=_POSITION, y=Axis(label="coefficient × log ratio, nats"),
        series=[
            each
            for part, name in enumerate(parts)
            for each in _curves(frames, x, partial(_column, name=name), part)
        ],
        frames=labels, pooled=True, parts=("signal", "pull"), one_group=True,
    )  # fmt: skip


def _column(profile: Profile, name: str) -> Column:
    return profile.columns[name]


def _spread(labels: list[str], frames: Frames, x: Column, *, old: bool) -> Figure:
    curves = _curves(frames, x, lambda profile: profile.spread)
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
        text="Standard deviation of the cumulative log ratio log ρ_t at each position, around the mean of its update. "
        "On log scales a power of t is a straight line. Dashed: growth as √t, as if token ratios were independent. If "
        "the curve is steeper, a √t band clips late tokens more often." + _POOLED * old,
        x=_LOG_POSITION, y=Axis(
            label="standard deviation, nats (log scale)", scale="log", low=max(tops, default=1.0) * _LOWEST_SPREAD
        ), series=series,
        frames=labels, pooled=True,
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
        y=Axis(label="share of tokens in the cell", low=0, percent=True), series=series, frames=labels, pooled=True,
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


def _norms(profiles: Sequence[Sequence[dict[int, Profile]]]) -> Figure:
    """Return the gradient's norm in every update, thinned in long runs."""
    series = []
    for group, runs in enumerate(profiles):
        by_run = []
        for run in runs:
            lists = [profile.updates for profile in run.values() if "gradient_norm" in profile.updates]
            by_run.append(
                {
                    number: norm
                    for updates in lists
                    for number, norm in zip(updates["update"], updates["gradient_norm"], strict=True)
                    if number is not None
                }
            )
        numbers = sorted({number for norms in by_run for number in norms})
        numbers = [numbers[index] for index in thinned(len(numbers), _MOST_UPDATES)]
        band = over_seeds([[norms.get(number) for number in numbers] for norms in by_run if norms])
        if has_values(band.mean):
            series.append(
                Series(group=group, x=numbers, y=band.mean, low=drawn(band.low), high=drawn(band.high))
            )
    return Figure(
        id="gradient-norm-by-update", section="training", title="Gradient norm, update by update",
        text="Norm of the gradient of every update, before it is clipped. Look for whether it grows within a rollout "
        "batch, whose later updates are further from the policy that sampled.",
        x=Axis(label="updates", low=0, whole=True), y=Axis(label="norm", low=0), series=series, small=True,
    )  # fmt: skip


def _exponents(profiles: Sequence[Sequence[dict[int, Profile]]], *, old: bool) -> Figure:
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
        "if they were independent, which a √t band assumes. Above 0.5, the ratios of a response drift together."
        + _POOLED * old,
        x=Axis(label="rollout batches", low=0, whole=True), y=Axis(label="exponent p"), series=series,
    )  # fmt: skip
