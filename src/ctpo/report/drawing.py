"""Figures as PNG and SVG files, drawn by matplotlib in the light colours of the page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.report.collection import Collection
from ctpo.report.figures.by_batch import learning_curve
from ctpo.report.figures.figure import NEAR_ZERO, Axis, Figure, Series, Values
from ctpo.runs.directory import RunDirectory
from ctpo.runs.reader import read_run

_WIDTH_IN, _HEIGHT_IN, _DPI = 6.4, 4.0, 160
_MARKERS: Final = ("o", "s", "^", "D", "x", "+", "v", "o")
"""By colour, as in the page's script."""
_MOST_APART = 0.12
"""The largest distance between the dots of two groups in one category."""
_MOST_MARKERS = 30
"""A curve with more points than this has none of them marked."""
_STYLES = {"line": "-", "dots": "", "seed": "-", "reference": ":", "limit": "--"}
_WIDTHS = {"line": 1.8, "dots": 0.0, "seed": 0.7, "reference": 1.1, "limit": 1.5}


def draw(collection: Collection, figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG, and return the paths.

    There is one picture per regime, or one per group for figures that show one group at a time. A figure with frames
    shows its first, and single seeds are left out.

    Raises:
        UserError: if the folder cannot be written.
    """
    written = []
    group_names = [group.name for group in collection.groups]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            for file_name, subtitle, series in _views(collection, figure):
                picture = _picture(figure, subtitle, series, group_names)
                for ending in (".png", ".svg"):
                    path = folder / f"{file_name}{ending}"
                    picture.savefig(path)
                    written.append(path)
    except OSError as error:
        raise UserError(f"--plots {folder} cannot be written ({error.strerror}); choose another") from None
    return written


def draw_learning_curve(run: Path) -> Path:
    """Draw held-out accuracy and training reward of one run against wall-clock time; return the PNG's path.

    Raises:
        OSError: if the picture cannot be written.
    """
    figure, path = learning_curve(read_run(run)), RunDirectory(run).curve
    _picture(figure, "", figure.series, []).savefig(path)
    return path


def _views(collection: Collection, figure: Figure) -> Iterator[tuple[str, str, list[Series]]]:
    """Yield the file name, the subtitle and the curves of each picture of a figure."""
    shown = [each for each in figure.series if each.role != "seed" and each.frame in (None, 0)]
    if figure.one_group:
        for place, group in enumerate(collection.groups):
            series = [each for each in shown if each.group == place]
            words = [word for word in (group.regime, group.name) if word]
            if series:
                yield "--".join([figure.id, *map(_file_name, words)]), " · ".join(words), series
        return
    for regime in collection.regimes:
        series = [
            each for each in shown if each.group is None or collection.groups[each.group].regime == regime
        ]
        if series:
            yield "--".join([figure.id, *([_file_name(regime)] if regime else [])]), regime, series


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", name).strip("-") or "unnamed"


def _picture(figure: Figure, subtitle: str, series: Sequence[Series], group_names: Sequence[str]) -> Any:
    """Return the matplotlib figure of these curves. Groups with the same name, in several regimes, share a colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    colours, names = _colours(), list(dict.fromkeys(group_names))
    labelled: set[str] = set()
    beside = _beside_each_other(series)
    for each in series:
        if each.part is not None:
            place, name = each.part, figure.parts[each.part]
        else:
            name = group_names[each.group] if each.group is not None else ""
            place = names.index(name)
        label = name if each.role != "reference" else each.name
        _draw_curve(
            axes,
            beside.get(id(each), each),
            colours[place % len(colours)],
            _MARKERS[(place + place // len(colours)) % len(_MARKERS)],
            None if label in labelled else label or None,
            again=place >= len(colours),
        )
        labelled.add(label)
    _set_axis(axes, "x", figure.x)
    _set_axis(axes, "y", figure.y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    frame = figure.frames[0] if figure.frames else ""
    axes.set_title(" · ".join(filter(None, (figure.title, subtitle, frame))), loc="left", fontsize=10)
    if len(labelled) > 1:
        axes.legend(frameon=False, fontsize=8)
    return picture


def _beside_each_other(series: Sequence[Series]) -> dict[int, Series]:
    """Return the dots of each group with their x moved, so that groups in one category do not cover each other."""
    dotted = [each for each in series if each.role == "dots"]
    apart = min(_MOST_APART, 0.8 / max(1, len(dotted)))
    return {
        id(each): replace(
            each, x=[None if x is None else x + (place - (len(dotted) - 1) / 2) * apart for x in each.x]
        )
        for place, each in enumerate(dotted)
    }


def _draw_curve(
    axes: Any, series: Series, colour: str, marker: str, label: str | None, *, again: bool
) -> None:
    """Draw one curve, with other dashes if its colour is used `again`, as the page does."""
    x, y = _with_gaps(series.x), _with_gaps(series.y)
    marked = series.role == "dots" or (series.role == "line" and len(x) <= _MOST_MARKERS)
    style = "-." if again and series.role == "line" else _STYLES[series.role]
    axes.plot(
        x, y, color=colour, linestyle=style, linewidth=_WIDTHS[series.role],
        marker=marker if marked else None, markersize=4, label=label,
    )  # fmt: skip
    if series.low is not None and series.high is not None:
        low, high = _with_gaps(series.low), _with_gaps(series.high)
        axes.fill_between(x, low, high, color=colour, alpha=0.17, linewidth=0)


def _with_gaps(values: Values) -> list[float]:
    """Return the values with NaN for None, where matplotlib leaves a gap."""
    return [float("nan") if value is None else value for value in values]


def _set_axis(axes: Any, which: str, axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    getattr(axes, f"set_{which}label")(axis.label)
    if axis.scale == "log":
        getattr(axes, f"set_{which}scale")("log")
        getattr(axes, f"{which}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif axis.scale == "symlog":
        getattr(axes, f"set_{which}scale")("asinh", linear_width=NEAR_ZERO)
    getattr(axes, f"set_{which}lim")(*_limits(axes, which, axis))
    if axis.scale == "linear" and not axis.names:
        low, high = getattr(axes, f"get_{which}lim")()
        if low > 0 or high < 0:
            getattr(axes, f"set_{which}label")(f"{axis.label} (this axis does not start at 0)")
    if axis.names:
        getattr(axes, f"set_{which}ticks")(range(len(axis.names)), axis.names)
    if axis.whole:
        getattr(axes, f"{which}axis").set_major_locator(MaxNLocator(integer=True))
    if axis.percent:
        getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _limits(axes: Any, which: str, axis: Axis) -> tuple[float | None, float | None]:
    """Return the ends of an axis; None where matplotlib is to choose. A linear axis shows 0 unless it is `cut`."""
    if axis.names:
        return -0.5, len(axis.names) - 0.5
    if axis.scale != "linear" or axis.cut:
        return axis.low, axis.high
    low, high = getattr(axes.dataLim, f"interval{which}")
    return (
        0.0 if axis.low is None and low >= 0 else axis.low,
        0.0 if axis.high is None and low < 0 >= high else axis.high,
    )


def _colours() -> list[str]:
    """Return the light colours of the curves, from the page's style sheet."""
    style = files("ctpo.report").joinpath("web", "page.css").read_text(encoding="utf-8")
    return re.findall(r"--series-\d+: light-dark\((#\w+),", style)
