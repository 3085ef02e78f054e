"""The figures of one target, drawn from the content of `fidelity.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.extras import require

_GREY: Final = "0.55"
_BAND: Final = "0.9"
_FIGURES: Final = (
    ("batch_cosine", "cosine of a batch of {batch}\nwith the on-policy gradient"),
    ("component", "component of the expectation\n(bias; 1 is on-policy)"),
    ("signal_to_noise", "signal to noise\n(on-policy is 1)"),
    ("pull", "pull under null advantages\n(1 is the on-policy signal)"),
)
_MARKERS: Final = ("o", "s", "^", "D", "v", "P")
_STYLES: Final = ("-", "--", ":")


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw cosine, bias, signal to noise and pull, and what of them falls where, as .png or .svg.

    With one behaviour policy, the upper row has one line for each objective; with several, the figures are drawn over
    the drift. The lower row shows the pair with the largest drift, by position and by response length.

    Args:
        result: the content of `fidelity.json`.
        path: the picture; its ending says which kind.

    Raises:
        UserError: if matplotlib is missing, or the file cannot be written.
    """
    require("the figure", "report", "matplotlib")
    from matplotlib.figure import Figure

    pairs = sorted(result["pairs"], key=lambda pair: pair["drift"]["log_ratio_std"])
    farthest = pairs[-1]
    names = [row["objective"] for row in farthest["objectives"]]
    kind = next(iter(result["on_policy"]))
    looks = [_look(place) for place in range(len(names))]
    figure = Figure(figsize=(15, 7.2 + 0.14 * len(names)), layout="constrained", dpi=130)
    upper, lower = figure.subplots(2, 4, height_ratios=(1.1, 1))
    for place, (axes, (key, title)) in enumerate(zip(upper, _FIGURES, strict=True)):
        own = result["on_policy"][kind][key] if key != "pull" else None
        values = [[row["advantages"][kind][key] for row in pair["objectives"]] for pair in pairs]
        if len(pairs) == 1:
            _dots(axes, names if place == 0 else [""] * len(names), values[0], own, looks)
        else:
            _over_drift(axes, [pair["drift"]["log_ratio_std"] for pair in pairs], values, own, looks)
        axes.set_title(title.format(batch=result["sizes"]["batch"]), loc="left", fontsize=9)
    where = "" if len(pairs) == 1 else f", at {farthest['drift']['log_ratio_std']:.2g} nats"
    rows = [row["advantages"][kind] for row in farthest["objectives"]]
    _by_octave(lower[0], result["octaves"], result["on_policy"][kind]["octaves"], rows, looks)
    lower[0].set_title(f"parts of the component by position{where}", loc="left", fontsize=9)
    _by_length(lower[1], farthest["lengths"], rows, looks)
    lower[1].set_title(f"component by response length{where}", loc="left", fontsize=9)
    _shares(lower[2], result["positions"], farthest, looks)
    lower[2].set_title(f"effective share of the weights after clipping{where}", loc="left", fontsize=9)
    _drift(lower[3], farthest["drift"]["by_position"])
    lower[3].set_title(f"log ratio of the prefix, nats{where}", loc="left", fontsize=9)
    for axes in (*upper, *lower):
        axes.spines[["top", "right"]].set_visible(False)
    handles = [lower[2].lines[place] for place in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    of = pairs[0]["behaviour"] if len(pairs) == 1 else f"{len(pairs)} behaviour policies"
    figure.suptitle(
        f"{of} → {result['target']}, task {result['task']}, advantages per {kind}; bars: 95 %", fontsize=10
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {path} cannot be written ({error}); give a .png or .svg") from None


def _look(place: int) -> dict[str, Any]:
    return {
        "color": f"C{place % 10}",
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _STYLES[place // 10 % len(_STYLES)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def _dots(
    axes: Any,
    names: Sequence[str],
    estimates: Sequence[Mapping[str, Any]],
    own: Mapping[str, Any] | None,
    looks: Sequence[Mapping[str, Any]],
) -> None:
    """One objective per line, with its interval; on-policy sampling as a grey line, with its own."""
    axes.axvline(0, color=_GREY, linewidth=0.7)
    if own is not None and own["value"] is not None:
        if own["low"] is not None and own["high"] is not None:
            axes.axvspan(own["low"], own["high"], color=_BAND, linewidth=0)
        axes.axvline(own["value"], color=_GREY, linestyle="--", linewidth=0.9)
    for place, (each, look) in enumerate(zip(estimates, looks, strict=True)):
        if each["value"] is not None:
            axes.errorbar(each["value"], place, xerr=_reach(each), **{**look, "linestyle": "none"})
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", alpha=0.2)
    _without_outliers(axes, "x", estimates)


def _over_drift(
    axes: Any,
    drifts: Sequence[float],
    values: Sequence[Sequence[Mapping[str, Any]]],
    own: Mapping[str, Any] | None,
    looks: Sequence[Mapping[str, Any]],
) -> None:
    axes.axhline(0, color=_GREY, linewidth=0.7)
    if own is not None and own["value"] is not None:
        axes.axhline(own["value"], color=_GREY, linestyle="--", linewidth=0.9)
    for place, look in enumerate(looks):
        known = [
            (x, pair[place])
            for x, pair in zip(drifts, values, strict=True)
            if pair[place]["value"] is not None
        ]
        shift = 1 + 0.012 * (place - len(looks) / 2)  # so that bars at one drift do not hide each other
        axes.errorbar(
            [x * shift for x, _ in known],
            [each["value"] for _, each in known],
            yerr=[_reach(each) for _, each in known],
            elinewidth=0.6,
            **look,
        )
    axes.set_xscale("log")
    axes.set_xticks(drifts, [f"{drift:.2g}" for drift in drifts], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("drift: spread of a response's log ratio, nats", fontsize=8)
    axes.grid(alpha=0.25)
    _without_outliers(axes, "y", [each for pair in values for each in pair])


def _reach(each: Mapping[str, Any]) -> float:
    return 0.0 if each["high"] is None else each["high"] - each["value"]


def _without_outliers(axes: Any, which: str, estimates: Sequence[Mapping[str, Any]]) -> None:
    """Let the axis end at the values and not at intervals far beyond them."""
    values = [each["value"] for each in estimates if each["value"] is not None]
    if not values:
        return
    low, high = min(0.0, *values), max(1.0, *values)
    room = 0.35 * (high - low)
    ends = getattr(axes, f"get_{which}lim")()
    getattr(axes, f"set_{which}lim")(max(ends[0], low - room), min(ends[1], high + room))


def _by_octave(
    axes: Any,
    octaves: Sequence[int],
    own: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    looks: Sequence[Mapping[str, Any]],
) -> None:
    """What each octave of positions adds to the component, and what it adds on-policy, in grey."""
    axes.plot(octaves, [_value(each["value"]) for each in own], color=_GREY, linestyle="--", linewidth=3)
    axes.axhline(0, color=_GREY, linewidth=0.7)
    for row, look in zip(rows, looks, strict=True):
        axes.plot(octaves, [_value(each["value"]) for each in row["octaves"]], **look)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position t, by octaves; dashed: on-policy", fontsize=8)
    axes.grid(alpha=0.25)


def _by_length(
    axes: Any,
    bins: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    looks: Sequence[Mapping[str, Any]],
) -> None:
    axes.axhline(1, color=_GREY, linestyle="--", linewidth=0.9)
    axes.axhline(0, color=_GREY, linewidth=0.7)
    for row, look in zip(rows, looks, strict=True):
        shown = [_value(each["component"]["value"]) for each in row["lengths"]]
        axes.plot(range(len(shown)), shown, **look)
    labels = [
        f"{each['from']}–{'' if each['below'] is None else each['below'] - 1}\n"
        f"({'–' if each['log_ratio_std'] is None else format(each['log_ratio_std'], '.2g')} nats)"
        for each in bins
    ]
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlabel("sampled tokens (drift)", fontsize=8)
    axes.grid(alpha=0.25)
    _without_outliers(axes, "y", [each["component"] for row in rows for each in row["lengths"]])


def _shares(
    axes: Any, positions: Sequence[int], pair: Mapping[str, Any], looks: Sequence[Mapping[str, Any]]
) -> None:
    for row, look in zip(pair["objectives"], looks, strict=True):
        axes.plot(positions, [_value(share["value"]) for share in row["ess"]], **look)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("position t", fontsize=8)
    axes.grid(alpha=0.25)


def _drift(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    positions = [row["position"] for row in rows]
    spreads = [_value(row["std"]) for row in rows]
    axes.plot(positions, spreads, "o-", markersize=3, label="standard deviation")
    axes.plot(positions, [_value(row["mean"]) for row in rows], "o-", markersize=3, color="C3", label="mean")
    roots = [spreads[-1] * (position / positions[-1]) ** 0.5 for position in positions]
    axes.plot(positions, roots, ":", color=_GREY, label="√t through the last")
    axes.set_xlabel("position t", fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=7)


def _value(value: float | None) -> float:
    return float("nan") if value is None else value
