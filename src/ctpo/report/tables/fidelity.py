"""The table of gradient fidelity: every objective beside every behaviour policy that was measured."""

from __future__ import annotations

from ctpo.report.collection import Collection
from ctpo.report.figures.fidelity import measurements
from ctpo.report.tables.comparison import Table
from ctpo.runs.fidelity import FIGURES, Interval


def fidelity_tables(collection: Collection) -> list[Table]:
    """One table for each measurement; none if no run has any."""
    tables = []
    for place, (name, measured) in enumerate(measurements(collection)):
        rows = [
            [pair.behaviour, f"{pair.drift or 0:.2g}", objective, *(_shown(figures[key]) for key in FIGURES)]
            for pair in measured.pairs
            for objective, figures in zip(measured.objectives, pair.figures, strict=True)
        ]
        of = "" if measured.batch is None else f" of {measured.batch:.0f}"
        tables.append(
            Table(
                id=f"fidelity-{place}", section="fidelity",
                title=f"Gradient fidelity for {name or measured.target}",
                text="How the gradient of each objective on the responses of an older policy compares with the "
                "on-policy gradient. ± is the standard error, that of the reference included. docs/how-to/fidelity.md "
                "defines the figures.",
                head=["behaviour", "drift, nats", "objective", f"cosine{of}", "component", "S/N", "pull"], rows=rows,
            )
        )  # fmt: skip
    return tables


def _shown(figure: Interval) -> str:
    if figure.value is None:
        return "–"
    return f"{figure.value:.2f}" + ("" if figure.stderr is None else f" ± {figure.stderr:.2f}")
