"""What a plot is before anything draws it: the page's script and matplotlib draw the same values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Values = Sequence[float | None]
NEAR_ZERO = 1e-3
"""Where a symlog axis turns from linear to logarithmic."""

Role = Literal["line", "seed", "reference", "limit"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis; limits that are None come from the values."""

    label: str
    scale: Literal["linear", "log", "symlog"] = "linear"
    """`symlog` is linear near zero and logarithmic on both sides of it: asinh(v / NEAR_ZERO)."""
    low: float | None = None
    high: float | None = None
    percent: bool = False
    whole: bool = False
    """Whether values are whole numbers, and ticks between them make no sense."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve, with a band where `low` and `high` are given."""

    group: int | None
    """Whose colour it has, and whose switch hides it."""
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    part: int | None = None
    """Its entry in the figure's own legend, whose colour it has then instead."""
    role: Role = "line"
    frame: int | None = None
    other_x: Values | None = None
    of: Values | None = None
    """How many tokens a value is of."""
    name: str = ""
    """Where it needs one beside its group's and its part's."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot with everything that is said about it."""

    id: str
    section: str
    title: str
    text: str
    """What is shown and what to look for, in a sentence or two."""
    x: Axis
    y: Axis
    series: Sequence[Series]
    parts: Sequence[str] = ()
    """A legend of its own, where curves are not one a group."""
    frames: Sequence[str] = ()
    """What the figure can be stepped through; the first is shown at first."""
    one_group: bool = False
    """Whether groups are looked at one at a time."""
    other_x: Axis | None = None
    small: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """A mean over seeds and its standard error either side (no band for one seed)."""

    mean: list[float | None] = field(default_factory=list)
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)


def over_seeds(curves: Sequence[Values]) -> Band:
    """Mean ± standard error over runs at each place; a run without a value there is not counted."""
    band = Band()
    for place in range(max((len(curve) for curve in curves), default=0)):
        values = [value for curve in curves if place < len(curve) and (value := curve[place]) is not None]
        mean = math.fsum(values) / len(values) if values else None
        band.mean.append(mean)
        if mean is None or len(values) < 2:
            band.low.append(None)
            band.high.append(None)
            continue
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        stderr = math.sqrt(variance / len(values))
        band.low.append(mean - stderr)
        band.high.append(mean + stderr)
    return band


def has_values(values: Iterable[float | None] | None) -> bool:
    """Whether anything can be drawn."""
    return values is not None and any(value is not None for value in values)


def thinned(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 … count − 1, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})
