"""The picture of an analysis: its errors, biases, variances by position, and the spread of the log ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.lab.theory.analysis import Analysis

_WIDTH_IN, _HEIGHT_IN, _DPI = 10.0, 7.2, 150
_LARGEST: Final = 10**6
"""The number of trajectories at the right end of the axis of errors."""

_EXACT: Final = 1e-12
"""Biases below this are rounding, and are drawn as 0."""

_GREY = "#9ca3af"
_STYLES = ("-", "--", ":", "-.")


def draw(analysis: Analysis, path: Path, title: str) -> Path:
    """Draw an analysis to a file that matplotlib can write, such as .png or .svg; return the path.

    Raises:
        UserError: if the file cannot be written, or matplotlib does not know its ending.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    kinds = canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise UserError(f"figure={path} has no known ending; use .png or .svg")
    (error, bias), (variance, spread) = figure.subplots(2, 2)
    looks = _looks(analysis)
    _error(error, analysis, looks)
    _bias(bias, analysis, looks)
    _term_variance(variance, analysis, looks)
    _spread(spread, analysis)
    for axes in (error, bias, variance, spread):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    handles, labels = error.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    try:
        figure.savefig(path)
    except OSError as failure:
        raise UserError(
            f"figure={path} cannot be written ({failure.strerror}); choose another place"
        ) from None
    return path


def _looks(analysis: Analysis) -> dict[str, dict[str, Any]]:
    """Return the colour and the line style of every estimator, which are the same in all panels."""
    return {
        row.name: {"color": f"C{index % 10}", "linestyle": _STYLES[index // 10 % len(_STYLES)]}
        for index, row in enumerate(analysis.rows)
    }


def _error(axes: Any, analysis: Analysis, looks: dict[str, dict[str, Any]]) -> None:
    steps = 120
    sizes = [_LARGEST ** (i / steps) for i in range(steps + 1)]
    for row in analysis.rows:
        axes.loglog(sizes, [row.error(n) for n in sizes], label=row.name, linewidth=1.4, **looks[row.name])
    for start, _ in analysis.best()[1:]:
        axes.axvline(start, color=_GREY, linewidth=0.7)
    axes.set_xlim(1, _LARGEST)
    axes.set_xlabel("trajectories N")
    axes.set_title("mean squared error / ‖∇J‖²; grey: the best one changes", loc="left", fontsize=9)


def _bias(axes: Any, analysis: Analysis, looks: dict[str, dict[str, Any]]) -> None:
    names = [row.name for row in analysis.rows]
    colours = [looks[name]["color"] for name in names]
    places = range(len(names))
    axes.barh(places, [_shown(row.bias) for row in analysis.rows], height=0.7, color=colours)
    axes.plot(
        [_shown(row.own_bias) for row in analysis.rows],
        places,
        "k|",
        markersize=9,
        label="against its own target",
    )
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("bias / ‖∇J‖ (bars); 0 is exact", loc="left", fontsize=9)


def _shown(bias: float) -> float:
    return bias if bias > _EXACT else 0.0


def _term_variance(axes: Any, analysis: Analysis, looks: dict[str, dict[str, Any]]) -> None:
    for row in analysis.rows:
        positions = range(1, len(row.term_variance) + 1)
        axes.semilogy(positions, row.term_variance, linewidth=1.4, **looks[row.name])
    axes.set_xlabel("position t")
    axes.set_title("variance of the term at t / ‖∇J‖²", loc="left", fontsize=9)


def _spread(axes: Any, analysis: Analysis) -> None:
    mean, std = analysis.spread.mean, analysis.spread.std
    positions = range(1, len(std) + 1)
    axes.plot(positions, std, color="C0", marker="o", markersize=3, label="standard deviation")
    axes.plot(
        positions, [std[0] * t**0.5 for t in positions], color=_GREY, linestyle="--", label="its √t line"
    )
    axes.plot(positions, mean, color="C3", marker="o", markersize=3, label="mean")
    axes.set_xlabel("position t")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"log ρ_t, nats; fitted exponent {analysis.spread.exponent:.2f}", loc="left", fontsize=9)
