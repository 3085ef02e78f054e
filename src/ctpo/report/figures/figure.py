"""A figure as data. The page's script and matplotlib draw the same values from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ctpo.runs.means import mean

Values = Sequence[float | None]
NEAR_ZERO = 1e-3
"""The value at which a `symlog` axis turns from linear to logarithmic."""

Role = Literal["line", "dots", "seed", "reference", "limit"]
"""How values are drawn: as a curve, as dots that nothing joins, as one seed behind the mean, as a line to compare with,
or as the limit of a trust region."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a figure."""

    label: str
    scale: Literal["linear", "log", "symlog"] = "linear"
    """`symlog` is linear near zero and logarithmic on both sides of it: asinh(value / NEAR_ZERO)."""
    low: float | None = None
    """The lower end; None takes the smallest value, or 0 if that is smaller."""
    high: float | None = None
    """The upper end; None takes the largest value, or 0 if that is larger."""
    cut: bool = False
    """Whether the axis may leave out 0, to show small differences. The drawing then says so."""
    names: Sequence[str] = ()
    """The categories at 0, 1, …, in place of numbers."""
    percent: bool = False
    whole: bool = False
    """Whether only whole numbers get a tick."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve, with a band around it if `low` and `high` are given."""

    group: int | None
    """The index of its group of runs, which gives the colour and can be hidden; None if it belongs to no group."""
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    part: int | None = None
    """Its index in the figure's own legend, which then gives the colour instead of the group."""
    role: Role = "line"
    frame: int | None = None
    """The index of the frame that it is shown in; None if the figure has no frames."""
    other_x: Values | None = None
    """Its values on the figure's second x axis."""
    token_counts: Values | None = None
    """The number of tokens behind each value."""
    name: str = ""
    """What the curve is, where its group and part do not say it."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure with its title and explanation."""

    id: str
    section: str
    title: str
    text: str
    """What the figure shows and what to look for, in one or two sentences."""
    x: Axis
    y: Axis
    series: Sequence[Series]
    parts: Sequence[str] = ()
    """The entries of a legend of its own, for figures with more than one curve per group."""
    frames: Sequence[str] = ()
    """The names of what a reader can step through; the first frame is shown at the start."""
    pooled: bool = False
    """Whether the first frame holds all the others together. It is then a button beside the slider."""
    one_group: bool = False
    """Whether the figure shows one group at a time."""
    other_x: Axis | None = None
    """A second x axis that a reader can switch to."""
    small: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """A mean curve, and curves one standard error below and above it (None where there is one value only)."""

    mean: list[float | None] = field(default_factory=list)
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)


def over_seeds(curves: Sequence[Values]) -> Band:
    """Return the mean ± standard error over runs at each place. A run without a value there does not count."""
    band = Band()
    for place in range(max((len(curve) for curve in curves), default=0)):
        values = [value for curve in curves if place < len(curve) and (value := curve[place]) is not None]
        average = mean(values) if values else None
        spread = None if average is None else average.stderr
        band.mean.append(None if average is None else average.value)
        band.low.append(None if average is None or spread is None else average.value - spread)
        band.high.append(None if average is None or spread is None else average.value + spread)
    return band


def has_values(values: Iterable[float | None] | None) -> bool:
    """Return whether there is anything to draw."""
    return values is not None and any(value is not None for value in values)


def drawn(values: Values) -> Values | None:
    """Return the values, or None if there is nothing to draw."""
    return values if has_values(values) else None


def thinned(count: int, most: int) -> list[int]:
    """Return at most `most` of the indices 0 … count − 1, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})
