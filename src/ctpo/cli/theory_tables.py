"""The tables of `ctpo theory`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ctpo.lab.theory import Analysis
from ctpo.lab.theory.draws import average

_WIDTH: Final = 200

_EXACT: Final = 1e-12
"""Biases below are the rounding of float64."""


def print_tables(title: str, analyses: list[Analysis], sizes: Sequence[int], figure: Path | None) -> None:
    """Print one problem's analysis, or the averages over several."""
    # A table is as wide as its figures need; squeezed into a narrow terminal, the names would go first.
    console = Console(soft_wrap=True, highlight=False, width=_WIDTH)
    console.print(escape(title))
    if len(analyses) == 1:
        _print_one(console, analyses[0], sizes)
    else:
        _print_averages(console, analyses, sizes)
    if figure is not None:
        console.print(f"figure: {figure}", markup=False)


def _print_one(console: Console, analysis: Analysis, sizes: Sequence[int]) -> None:
    distance, spread = analysis.distance, analysis.spread
    before, after = analysis.rewards
    console.print(
        f"J(b) {before:.4g}, J(pi) {after:.4g}, |grad J| {analysis.gradient_norm:.4g}; "
        f"total variation of a step at most {distance['total_variation']:.3g}, KL(b, pi) {distance['kl']:.3g} nats, "
        f"effective sample share "
        f"{distance['ess']:.3g}",
    )
    console.print(
        f"log ratio of the prefix: mean ± std {spread.mean[0]:+.3f} ± {spread.std[0]:.3f} at t=1, "
        f"{spread.mean[-1]:+.3f} ± {spread.std[-1]:.3f} at t={len(spread.std)}; "
        f"exponent of the std in t {spread.exponent:.2f}"
    )
    if analysis.unit != analysis.gradient_norm:
        console.print("grad J is 0: what follows is not in its units but absolute")
    horizon = len(spread.std)
    table = _table(
        ["bias", "own", "cos", "var", "t=1", f"t={horizon}", *(f"N={_short(n)}" for n in sizes)],
    )
    for row in analysis.rows:
        table.add_row(
            escape(row.name),
            _bias(row.bias),
            _bias(row.own_bias),
            f"{row.cosine:.3f}",
            _short(row.variance),
            _short(row.term_variance[0]),
            _short(row.term_variance[-1]),
            *(_short(row.error(n)) for n in sizes),
        )
    console.print(table)
    console.print("least mean squared error: " + escape(_ranges(analysis.best())))
    console.print(
        "bias, own: against grad J and the family's own target, in |grad J|; cos: of expected gradient and grad J;\n"
        "var, t=: variance from one trajectory, of the sum and of the term at t; N=: mean squared error; in |grad J|²",
        style="dim",
    )


def _print_averages(console: Console, analyses: list[Analysis], sizes: Sequence[int]) -> None:
    table = _table(["bias", "own", "cos", "var", *(f"best {_short(n)}" for n in sizes)])
    for row in average(analyses, sizes):
        table.add_row(
            escape(row.name),
            _with_error(row.bias, row.bias_stderr),
            _with_error(row.own_bias, row.own_bias_stderr),
            f"{row.cosine:.3f}",
            _short(row.variance),
            *(f"{100 * share:.0f} %" for share in row.wins),
        )
    console.print(table)
    exponent = fmean(analysis.spread.exponent for analysis in analyses)
    console.print(f"exponent of the log ratio's std in t: mean {exponent:.2f}")
    console.print(
        "means over problems, biases ± standard error, in |grad J|; best N: share of the problems in which it has the\n"
        "least mean squared error from N trajectories",
        style="dim",
    )


def _table(heads: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("estimator", overflow="fold", max_width=24)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _ranges(best: list[tuple[float, str]]) -> str:
    """ "a up to N = 84, b up to 293, then c" of the points where the best changes."""
    if len(best) == 1:
        return f"{best[0][1]} at every N"
    ends = [f"{name} up to N = {_short(following)}" for (_, name), (following, _) in pairwise(best)]
    return ", ".join(ends) + f", then {best[-1][1]}"


def _bias(value: float) -> str:
    return "exact" if value < _EXACT else _short(value)


def _with_error(value: float, stderr: float) -> str:
    return "exact" if value < _EXACT else f"{_short(value)} ± {stderr:.1g}"


def _short(value: float) -> str:
    """Three digits, whole numbers below a million in full."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
