"""The score of each seed: the pairs that the paired tests compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ctpo.report.collection import Collection
from ctpo.report.figures.figure import Axis, Figure, Series
from ctpo.runs.scores import Score

_PLOTS = (
    ("final", "Final accuracy, seed by seed", Axis(label="final held-out {score}", percent=True, cut=True)),
    ("auc", "AUC, seed by seed", Axis(label="mean training reward", cut=True)),
)


def figures(collection: Collection) -> list[Figure]:
    """Return one figure per score; none if no group has two finished seeds."""
    scores = [group.scores for group in collection.groups]
    if all(len(each) < 2 for each in scores):
        return []
    seeds = sorted({seed for each in scores for seed in each})
    return [
        Figure(
            id=f"seeds-{name}", section="comparison", title=title,
            text="Runs with the same seed see the same problems in the same order. So compare the dots above one "
            "seed: the paired tests use their differences. A single low dot may be a collapse.",
            x=Axis(label="seed", names=[str(seed) for seed in seeds]),
            y=replace(axis, label=axis.label.format(score=collection.score_name)),
            series=[_series(place, each, name, seeds) for place, each in enumerate(scores) if each],
        )
        for name, title, axis in _PLOTS
    ]  # fmt: skip


def _series(group: int, scores: dict[int, Score], name: str, seeds: Sequence[int]) -> Series:
    """Return one dot per seed of the group. A seed's place among all seeds is its x."""
    known = [(float(place), scores[seed].named(name)) for place, seed in enumerate(seeds) if seed in scores]
    return Series(group=group, role="dots", x=[x for x, _ in known], y=[y for _, y in known])
