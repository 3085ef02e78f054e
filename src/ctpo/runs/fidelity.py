"""What `ctpo fidelity` left in a run's directory, read for reports: damaged parts are left out, and each is noted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ctpo.errors import one_line
from ctpo.runs.files import leads_out, read_text
from ctpo.runs.reader import Run, number, numbers

FOLDER: Final = "fidelity"
"""The folder of a run in which measurements are kept, one folder for each target."""
FIGURES: Final = ("batch_cosine", "cosine", "component", "signal_to_noise", "pull")
_MOST_MEASUREMENTS: Final = 8
_MOST_PAIRS: Final = 12
_MOST_OBJECTIVES: Final = 40
_LONGEST_NAME: Final = 80


@dataclass(frozen=True)
class Interval:
    """A figure, with its standard error and its interval of 95 %; None where it is not known."""

    value: float | None
    stderr: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class PairFidelity:
    """The figures of one behaviour policy beside the target.

    Attributes:
        behaviour: its name.
        drift: the standard deviation of a response's log ratio, nats.
        figures: of each objective in order, by the names of `FIGURES`.
        lengths: of each objective, the same figures in each bin of response length.
        length_edges: the lower end of each of these bins, in tokens.
        octaves: of each objective, what each octave of positions adds to the component.
        shares: of each objective, the effective share of the weights by position.
        best: the objective with the largest cosine of a batch; None where the samples do not determine it.
        within_noise: the objectives whose cosine is not significantly below that.
    """

    behaviour: str
    drift: float | None
    figures: list[dict[str, Interval]]
    lengths: list[list[dict[str, Interval]]]
    length_edges: list[float | None]
    octaves: list[list[Interval]]
    shares: list[list[Interval]]
    best: str | None
    within_noise: list[str]


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One measurement: a target, the behaviour policies beside it, and the objectives, with one kind of advantages.

    Attributes:
        target: its name.
        kind: the advantages are those of a whole "response", or of each "turn".
        reference: the cosine of the reference gradient with the true one.
        sketch_error: the relative difference of derivatives from autograd.
        directions: random directions of the sketch; 0 if gradients are exact.
        objectives: their names.
        batch: responses of a batch.
        on_policy: the cosine of a batch of the target's own responses.
        positions, octaves: the positions of the shares, and the first positions of the octaves.
        octave_parts: what each octave adds on-policy.
        pairs: in the order of their drift.
    """

    target: str
    kind: str
    reference: Interval
    sketch_error: float | None
    directions: float | None
    objectives: list[str]
    batch: float | None
    on_policy: Interval
    positions: list[float | None]
    octaves: list[float | None]
    octave_parts: list[Interval]
    pairs: list[PairFidelity]


def read_fidelity(run: Run) -> list[Fidelity]:
    """The measurements in the run's folder `fidelity`. Those that cannot be used are left out and noted."""
    found = []
    paths = sorted(run.path.joinpath(FOLDER).glob("*/fidelity.json"))
    if len(paths) > _MOST_MEASUREMENTS:
        run.notes.append(f"fidelity: {len(paths) - _MOST_MEASUREMENTS} measurements are left out")
    for path in paths[-_MOST_MEASUREMENTS:]:
        name = str(path.relative_to(run.path))
        try:
            if leads_out(path, run.path):
                raise ValueError("a link that leads out of the run's directory")
            content = json.loads(read_text(path))
            found += [_measurement(content, kind) for kind in content["on_policy"]]
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            IndexError,
            RecursionError,
        ) as error:
            reason = one_line(str(getattr(error, "strerror", None) or error))
            run.notes.append(f"{name} is damaged and left out ({reason[:120]})")
    return found


def _measurement(content: Mapping[str, Any], kind: str) -> Fidelity:
    pairs = content["pairs"][:_MOST_PAIRS]
    objectives = [_name(row["objective"]) for row in pairs[0]["objectives"]][:_MOST_OBJECTIVES]
    own = content["on_policy"][kind]
    return Fidelity(
        target=_name(content["target"]),
        kind=_name(kind),
        reference=_interval(content["reference"]["cosine"]),
        sketch_error=number(content["sketch"]["error"]),
        directions=number(content["sizes"]["directions"]),
        objectives=objectives,
        batch=number(content["sizes"]["batch"]),
        on_policy=_interval(own["batch_cosine"]),
        positions=numbers(content["positions"]),
        octaves=numbers(content["octaves"]),
        octave_parts=[_interval(each) for each in own["octaves"]],
        pairs=sorted((_pair(each, kind, objectives) for each in pairs), key=lambda pair: pair.drift or 0.0),
    )


def _pair(content: Mapping[str, Any], kind: str, objectives: list[str]) -> PairFidelity:
    rows = content["objectives"][: len(objectives)]
    if [_name(row["objective"]) for row in rows] != objectives:
        raise ValueError("its pairs have different objectives")
    of_kind = [row["advantages"][kind] for row in rows]
    recommended = content["recommended"][kind]
    return PairFidelity(
        behaviour=_name(content["behaviour"]),
        drift=number(content["drift"]["log_ratio_std"]),
        figures=[_intervals(each) for each in of_kind],
        lengths=[[_intervals(part) for part in each["lengths"]] for each in of_kind],
        length_edges=[number(each["from"]) for each in content["lengths"]],
        octaves=[[_interval(part) for part in each["octaves"]] for each in of_kind],
        shares=[[_interval(each) for each in row["ess"]] for row in rows],
        best=None if recommended["best"] is None else _name(recommended["best"]),
        within_noise=[_name(each) for each in recommended["within_noise"][:_MOST_OBJECTIVES]],
    )


def _intervals(content: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: _interval(content[name]) for name in FIGURES}


def _interval(content: Mapping[str, Any]) -> Interval:
    return Interval(*(number(content[name]) for name in ("value", "stderr", "low", "high")))


def _name(value: Any) -> str:
    return str(value)[:_LONGEST_NAME]
