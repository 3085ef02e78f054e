"""The table of gradient fidelity: every objective beside every behaviour policy that was measured."""

from __future__ import annotations

from ctpo.report.collection import Collection
from ctpo.report.figures.fidelity import measurements
from ctpo.report.tables.comparison import Table
from ctpo.runs.fidelity import FIGURES, Fidelity, Interval, PairFidelity


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
        columns = [f"cosine{of}", "cosine of E", "component", "S/N", "pull"]
        tables.append(
            Table(
                id=f"fidelity-{place}", section="fidelity",
                title=f"Gradient fidelity for {name or measured.target}",
                text="How the gradient of each objective on the responses of an older policy compares with the "
                "on-policy gradient. ± is the standard error, that of the reference included. docs/how-to/fidelity.md "
                f"defines the figures. {_quality(measured)} {' '.join(map(_recommended, measured.pairs))}",
                head=["behaviour", "drift, nats", "objective", *columns], rows=rows,
            )
        )  # fmt: skip
    return tables


def _quality(measured: Fidelity) -> str:
    """How well the reference and the derivatives are known."""
    norms = (
        f"norms are sketched along {measured.directions:.0f} directions"
        if measured.directions
        else "norms are exact"
    )
    error = "–" if measured.sketch_error is None else f"{100 * measured.sketch_error:.2g} %"
    return (
        f"The reference has the cosine {_shown(measured.reference)} with the true gradient. Derivatives differ from "
        f"autograd by {error}, and {norms}."
    )


def _recommended(pair: PairFidelity) -> str:
    if pair.best is None:
        return f"After {pair.behaviour} no best objective is known."
    return (
        f"After {pair.behaviour} the best is {pair.best}; within its noise: {', '.join(pair.within_noise)}."
    )


def _shown(figure: Interval) -> str:
    if figure.value is None:
        return "–"
    return f"{figure.value:.2f}" + ("" if figure.stderr is None else f" ± {figure.stderr:.2f}")
