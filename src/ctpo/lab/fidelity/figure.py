"""The figures of one pair, drawn from the content of `fidelity.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.extras import require

_GREY: Final = "0.6"
_PANELS: Final = (
    ("batch_cosine", "cosine of one batch's gradient with the on-policy gradient"),
    ("component", "component of the expectation, relative to on-policy"),
    ("signal_to_noise", "on-policy responses that one response is worth"),
    ("pull", "pull under null advantages, relative to the on-policy signal"),
)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw cosine, bias, signal to noise, pull and the effective share by position, as .png or .svg.

    Args:
        result: the content of `fidelity.json`.
        path: the picture; its ending says which kind.

    Raises:
        UserError: if matplotlib is missing, or the file cannot be written.
    """
    require("the figure", "report", "matplotlib")
    from matplotlib.figure import Figure

    rows = result["objectives"]
    kind = next(iter(result["on_policy"]))
    height = 1.6 + 0.22 * len(rows)
    figure = Figure(figsize=(13, 2 * height + 1), layout="constrained")
    axes = figure.subplots(2, 3)
    for place, (name, title) in enumerate(_PANELS):
        estimates = [row["pull"] if name == "pull" else row["advantages"][kind][name] for row in rows]
        own = None if name == "pull" else result["on_policy"][kind][name]["value"]
        _dots(axes.flat[place], [row["objective"] for row in rows], estimates, own)
        axes.flat[place].set_title(title, loc="left", fontsize=9)
    _by_position(axes[1, 1], result)
    _drift(axes[1, 2], result["drift"]["by_position"])
    figure.suptitle(f"{result['behaviour']} → {result['target']}, advantages per {kind}", fontsize=10)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {path} cannot be written ({error}); give a .png or .svg") from None


def _dots(axes: Any, names: Sequence[str], estimates: Sequence[Mapping[str, Any]], own: float | None) -> None:
    """One objective per line, with its standard error; the on-policy value as a grey line."""
    axes.axvline(0, color=_GREY, linewidth=0.7)
    if own is not None:
        axes.axvline(own, color=_GREY, linestyle="--", linewidth=0.9)
    for place, each in enumerate(estimates):
        if each["value"] is not None:
            axes.errorbar(
                each["value"], place, xerr=each["stderr"], fmt="o", markersize=4, color=f"C{place % 10}"
            )
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _by_position(axes: Any, result: Mapping[str, Any]) -> None:
    for place, row in enumerate(result["objectives"]):
        shares = [float("nan") if share is None else share for share in row["ess"]]
        style = "-" if place < 10 else "--"
        axes.plot(
            result["positions"], shares, style, linewidth=1.2, color=f"C{place % 10}", label=row["objective"]
        )
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("position t")
    axes.legend(frameon=False, fontsize=6)
    axes.set_title("effective share of the weights after clipping", loc="left", fontsize=9)


def _drift(axes: Any, rows: Sequence[Mapping[str, float]]) -> None:
    positions = [row["position"] for row in rows]
    axes.plot(positions, [row["std"] for row in rows], "o-", markersize=3, label="standard deviation")
    axes.plot(positions, [row["mean"] for row in rows], "o-", markersize=3, color="C3", label="mean")
    axes.plot(
        positions, [row["ess"] for row in rows], "--", color=_GREY, label="effective share of the product"
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position t")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("log ratio of the prefix, nats", loc="left", fontsize=9)
