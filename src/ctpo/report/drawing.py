"""The same figures as PNG and SVG files, drawn by matplotlib in the page's light colours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.report.collection import Collection
from ctpo.report.figures.figure import NEAR_ZERO, Axis, Figure, Series

_WIDTH_IN, _HEIGHT_IN, _DPI = 6.4, 4.0, 160
_MARKERS: Final = ("o", "s", "^", "D", "x", "+", "v", "o")  # as the page's script has them
_STYLES = {"line": "-", "seed": "-", "reference": ":", "limit": "--"}
_WIDTHS = {"line": 1.8, "seed": 0.7, "reference": 1.1, "limit": 1.5}


def draw(collection: Collection, figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write every figure, one a regime (and one a group where groups are looked at one at a time); return the paths.

    Raises:
        UserError: if the folder cannot be written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            for name, title, series in _views(collection, figure):
                drawn = _drawn(collection, figure, title, series)
                for ending in (".png", ".svg"):
                    path = folder / f"{name}{ending}"
                    drawn.savefig(path)
                    written.append(path)
    except OSError as error:
        raise UserError(f"--plots {folder} cannot be written ({error.strerror}); choose another") from None
    return written


def _views(collection: Collection, figure: Figure) -> Iterator[tuple[str, str, list[Series]]]:
    """(file name, what is shown, its curves): the first frame, without single seeds."""
    shown = [s for s in figure.series if s.role != "seed" and s.frame in (None, 0)]
    if figure.one_group:
        for place, group in enumerate(collection.groups):
            mine = [s for s in shown if s.group == place]
            told = " · ".join(filter(None, (group.regime, group.name)))
            if mine:
                yield (
                    "--".join([figure.id, *map(_slug, filter(None, (group.regime, group.name)))]),
                    told,
                    mine,
                )
        return
    for regime in collection.regimes:
        mine = [s for s in shown if s.group is None or collection.groups[s.group].regime == regime]
        if mine:
            yield "--".join([figure.id, *([_slug(regime)] if regime else [])]), regime, mine


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", name).strip("-") or "unnamed"


def _drawn(collection: Collection, figure: Figure, title: str, series: Sequence[Series]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    names = list(dict.fromkeys(group.name for group in collection.groups))
    colours = _colours()
    told: set[str] = set()
    for each in series:
        group = collection.groups[each.group].name if each.group is not None else ""
        place = each.part if each.part is not None else names.index(group)
        name = figure.parts[each.part] if each.part is not None else group
        label = name if each.role != "reference" else each.name
        _curve(
            axes,
            each,
            colours[place % len(colours)],
            _MARKERS[place % len(_MARKERS)],
            "" if label in told else label,
        )
        told.add(label)
    _axis(axes, "x", figure.x)
    _axis(axes, "y", figure.y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    frame = figure.frames[0] if figure.frames else ""
    axes.set_title(" · ".join(filter(None, (figure.title, title, frame))), loc="left", fontsize=10)
    if len(told) > 1:
        axes.legend(frameon=False, fontsize=8)
    return canvas


def _curve(axes: Any, series: Series, colour: str, marker: str, label: str) -> None:
    x, y = [_plain(value) for value in series.x], [_plain(value) for value in series.y]
    few = series.role == "line" and len(x) <= 30
    axes.plot(
        x, y, color=colour, linestyle=_STYLES[series.role], linewidth=_WIDTHS[series.role],
        marker=marker if few else None, markersize=4, label=label or None,
    )  # fmt: skip
    if series.low is not None and series.high is not None:
        low, high = [_plain(value) for value in series.low], [_plain(value) for value in series.high]
        axes.fill_between(x, low, high, color=colour, alpha=0.17, linewidth=0)


def _plain(value: float | None) -> float:
    return float("nan") if value is None else value


def _axis(axes: Any, which: str, axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

    getattr(axes, f"set_{which}label")(axis.label)
    if axis.scale == "log":
        getattr(axes, f"set_{which}scale")("log")
        getattr(axes, f"{which}axis").set_major_formatter(ScalarFormatter())
    elif axis.scale == "symlog":
        getattr(axes, f"set_{which}scale")("asinh", linear_width=NEAR_ZERO)
    getattr(axes, f"set_{which}lim")(axis.low, axis.high)
    if axis.whole:
        getattr(axes, f"{which}axis").set_major_locator(MaxNLocator(integer=True))
    if axis.percent:
        getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _colours() -> list[str]:
    """The curves' light colours, from the page's own style sheet."""
    style = files("ctpo.report").joinpath("web", "page.css").read_text(encoding="utf-8")
    return re.findall(r"--series-\d+: light-dark\((#\w+),", style)
