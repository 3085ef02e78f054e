"""The score of each seed: the pairs that the paired tests compare."""

from __future__ import annotations

from dataclasses import replace

from ctpo.report.collection import Collection
from ctpo.report.figures.figure import Axis, Figure, Series
from ctpo.runs.scores import Score

_PLOTS = (
    ("final", "Final accuracy, seed by seed", Axis(label="final held-out {score}", percent=True)),
    ("auc", "AUC, seed by seed", Axis(label="mean training reward")),
)


def figures(collection: Collection) -> list[Figure]:
    """Return one figure per score; none if no group has two finished seeds."""
    scores = [group.scores for group in collection.groups]
    if all(len(each) < 2 for each in scores):
        return []
    return [
        Figure(
            id=f"seeds-{name}", section="comparison", title=title,
            text="Runs with the same seed see the same problems in the same order. So compare the points above one "
            "seed: the paired tests use their differences. A single low point may be a collapse.",
            x=Axis(label="seed", whole=True),
            y=replace(axis, label=axis.label.format(score=collection.score_name)),
            series=[_series(place, each, name) for place, each in enumerate(scores) if each],
        )
        for name, title, axis in _PLOTS
    ]  # fmt: skip


def _series(place: int, scores: dict[int, Score], name: str) -> Series:
    seeds = sorted(scores)
    return Series(
        group=place, x=[float(seed) for seed in seeds], y=[scores[seed].named(name) for seed in seeds]
    )
