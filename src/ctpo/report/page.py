"""One self-contained HTML page: figures, tables and responses as data, and the script that shows them."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from ctpo.report.collection import Collection
from ctpo.report.figures import by_batch, by_position, by_seed, fidelity
from ctpo.report.figures.figure import Axis, Figure, Series, Values
from ctpo.report.responses import ShownBatch, all_responses
from ctpo.report.tables.comparison import comparison_tables
from ctpo.report.tables.fidelity import fidelity_tables
from ctpo.report.tables.headline import cards
from ctpo.report.tables.settings import settings_tables
from ctpo.version import __version__

_DIGITS = 4
"""Significant digits of the values in figures. A plot shows no more, and the page stays small."""
_SCRIPTS = ("elements.js", "chart.js", "figures.js", "transcripts.js", "page.js")
_SECTIONS = {
    "learning": "Learning",
    "comparison": "Comparison",
    "position": "By position in the response",
    "fidelity": "Gradient fidelity",
    "tools": "Tool use",
    "training": "During training",
    "texts": "Responses",
    "settings": "Settings and environment",
}


def figures(collection: Collection) -> list[Figure]:
    """Return every figure of the report, in the order of the page."""
    unordered = [
        each for kind in (by_batch, by_seed, by_position, fidelity) for each in kind.figures(collection)
    ]
    return sorted(unordered, key=lambda figure: list(_SECTIONS).index(figure.section))


def page(collection: Collection, plots: Sequence[Figure], title: str) -> str:
    """Return the HTML of the page.

    Whatever came out of a model or a file is embedded as data, and the page's script shows it as text only.
    """
    script = "\n".join(_web(name) for name in _SCRIPTS)
    style = _web("page.css")
    return _filled(
        _web("page.html"),
        {
            "policy": _policy(script, style),
            "title": escape(title),
            "style": style,
            "data": embedded_json(_payload(collection, plots, title)),
            "script": script,
        },
    )


def embedded_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: it holds no `<`, no `>`, no `&`, and only ASCII."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True)
class Note:
    """One thing that is missing or damaged."""

    text: str
    runs: list[str]
    """The names of the runs that it is about; empty if it is about the whole report."""


def notes(collection: Collection) -> list[Note]:
    """Return what is missing or damaged, each thing once."""
    runs_by_note: dict[str, list[str]] = {note: [] for note in collection.notes}
    for name, run in zip(_run_names(collection), collection.runs, strict=True):
        for note in dict.fromkeys(run.notes):
            runs_by_note.setdefault(note, []).append(name)
    return [Note(text, runs) for text, runs in runs_by_note.items()]


def _web(name: str) -> str:
    return files("ctpo.report").joinpath("web", name).read_text(encoding="utf-8")


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Return the template with its `{{names}}` replaced. What is filled in is not searched for names again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _policy(script: str, style: str) -> str:
    """Return a content security policy that allows no network, and no script or style but these."""
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _payload(collection: Collection, plots: Sequence[Figure], title: str) -> dict[str, Any]:
    names = _run_names(collection)
    shown = all_responses(collection)
    payload = {
        "title": title,
        "version": __version__,
        "sections": _SECTIONS,
        "regimes": collection.regimes,
        "groups": [{"name": group.name, "regime": group.regime} for group in collection.groups],
        "runs": [
            {
                "name": name,
                "path": path,
                "heldout": list(map(_batch, responses.heldout)),
                "samples": list(map(_batch, responses.samples)),
            }
            for name, path, responses in zip(names, _paths(collection), shown, strict=True)
        ],
        "cards": [vars(card) for card in cards(collection)],
        "figures": [_figure(figure) for figure in plots],
        "tables": [
            vars(table)
            for kind in (comparison_tables, fidelity_tables, settings_tables)
            for table in kind(collection)
        ],
    }
    return {
        **payload,
        "notes": list(map(vars, notes(collection))),
    }  # last, because preparing the rest adds notes


def _batch(batch: ShownBatch) -> dict[str, Any]:
    return {"batch": batch.batch, "rows": batch.rows, "left_out": batch.left_out}


def _run_names(collection: Collection) -> list[str]:
    names = []
    for group in collection.groups:
        for run in group.runs:
            seed = run.path.name if run.seed is None else f"seed {run.seed}"
            names.append(f"{collection.name(group)}, {seed}")
    return names


def _paths(collection: Collection) -> list[str]:
    """Return the runs' paths below the folder they share, so that a page does not show where it was made."""
    paths = [str(run.path) for run in collection.runs]
    if not paths:
        return []
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def _figure(figure: Figure) -> dict[str, Any]:
    xs: list[list[float | None]] = []

    def place(values: Values) -> int:
        """Return the index of these values in `xs`: many curves share their x values, which are stored once."""
        rounded = _rounded(values)
        if rounded not in xs:
            xs.append(rounded)
        return xs.index(rounded)

    series = [_series(each, place) for each in figure.series]
    entries = {
        "id": figure.id, "section": figure.section, "title": figure.title, "text": figure.text, "x": _axis(figure.x),
        "y": _axis(figure.y), "parts": figure.parts, "frames": figure.frames, "pooled": figure.pooled,
        "oneGroup": figure.one_group, "small": figure.small,
        "otherX": _axis(figure.other_x) if figure.other_x else None, "xs": xs, "series": series,
    }  # fmt: skip
    return {key: value for key, value in entries.items() if value or key in ("xs", "series")}


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(axis).items()
        if value not in (None, "linear", ()) and value is not False
    }


def _series(series: Series, place: Callable[[Values], int]) -> dict[str, Any]:
    entries = {
        "group": series.group,
        "part": series.part,
        "frame": series.frame,
        "role": None if series.role == "line" else series.role,
        "name": series.name or None,
        "x": place(series.x),
        "otherX": None if series.other_x is None else place(series.other_x),
        "y": _rounded(series.y),
        "low": None if series.low is None else _rounded(series.low),
        "high": None if series.high is None else _rounded(series.high),
        "of": None if series.token_counts is None else _rounded(series.token_counts),
    }
    return {key: value for key, value in entries.items() if value is not None}


def _rounded(values: Values) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else _short(value) for value in values]


def _short(value: float) -> float:
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
