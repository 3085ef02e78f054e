"""Gradient fidelity, as `ctpo fidelity` measured it: by drift, by response length and by position."""

from __future__ import annotations

from collections.abc import Sequence

from ctpo.report.collection import Collection
from ctpo.report.figures.figure import Axis, Figure, Series, has_values
from ctpo.runs.fidelity import Fidelity, Interval, read_fidelity

_OVER_DRIFT = (
    (
        "batch_cosine",
        "cosine with the on-policy gradient",
        "Cosine of one batch's gradient with the on-policy gradient. Dotted: a batch that the "
        "target sampled itself. The further the policies drift, the lower it gets.",
    ),
    (
        "cosine",
        "cosine of the expectation",
        "Cosine of the expected gradient with the on-policy gradient: its bias in direction. 1 is none.",
    ),
    (
        "component",
        "component, on-policy = 1",
        "Component of the expected gradient along the on-policy one: its bias in length. 1 keeps the whole signal.",
    ),
    (
        "signal_to_noise",
        "on-policy responses per response",
        "How many on-policy responses one response is worth: the squared signal over the variance, relative to "
        "on-policy sampling.",
    ),
    (
        "pull",
        "pull, on-policy signal = 1",
        "The component that is left under advantages that know nothing. Below 0, clipping pulls back to the policy "
        "that sampled, whatever the reward says.",
    ),
)
_TITLES = {
    "batch_cosine": "Gradient cosine",
    "cosine": "Gradient cosine of the expectation",
    "component": "Signal kept",
    "signal_to_noise": "Signal to noise",
    "pull": "Pull",
}
_ON_POLICY = {"cosine": 1.0, "component": 1.0, "signal_to_noise": 1.0}
"""What on-policy sampling has by definition."""


def measurements(collection: Collection) -> list[tuple[str, Fidelity]]:
    """The measurements of all runs, each with a word for which one it is (empty if there is only one)."""
    found = [(run, each) for run in collection.runs for each in read_fidelity(run)]
    kinds = {each.kind for _, each in found}
    several = len({(run.path, each.target) for run, each in found}) > 1
    names = []
    for run, each in found:
        name = [f"{run.path.name}, {each.target.split('/')[-1]}"] if several else []
        names.append(", ".join([*name, *([f"advantages per {each.kind}"] if len(kinds) > 1 else [])]))
    return [(name, each) for name, (_, each) in zip(names, found, strict=True)]


def figures(collection: Collection) -> list[Figure]:
    """The figures of every measurement; none if no run has any."""
    made = [
        figure
        for place, (name, each) in enumerate(measurements(collection))
        for figure in _figures(each, f" ({name})" if name else "", f"-{place}" if place else "")
    ]
    return [figure for figure in made if any(has_values(each.y) for each in figure.series)]


def _figures(measured: Fidelity, name: str, suffix: str) -> list[Figure]:
    drifts = [pair.drift for pair in measured.pairs]
    frames = [f"{pair.behaviour}, {pair.drift or 0:.2g} nats" for pair in measured.pairs]
    parts = [*measured.objectives, "on-policy"]
    candidates = []
    if len(measured.pairs) > 1:
        for key, label, text in _OVER_DRIFT:
            series = [
                _curve(part, drifts, [pair.figures[part][key] for pair in measured.pairs])
                for part in range(len(measured.objectives))
            ]
            own = measured.on_policy.value if key == "batch_cosine" else _ON_POLICY.get(key)
            if own is not None:
                line = [own] * len(drifts)
                series.append(_reference(parts, drifts, line))
            candidates.append(
                Figure(
                    id=f"fidelity-{key}{suffix}", section="fidelity", title=f"{_TITLES[key]} by drift{name}",
                    text=text, x=Axis(label="spread of a response's log ratio, nats (log scale)", scale="log"),
                    y=Axis(label=label), series=series, parts=parts,
                )
            )  # fmt: skip
    edges = measured.pairs[0].length_edges
    places = [float(place) for place in range(1, len(edges) + 1)]
    from_to = ", ".join(f"from {edge or 0:.0f}" for edge in edges)
    lengths: dict[str, list[Series]] = {"batch_cosine": [], "component": []}
    octaves, shares = [], []
    for frame, pair in enumerate(measured.pairs):
        for part in range(len(measured.objectives)):
            for key, curves in lengths.items():
                curves.append(_curve(part, places, [each[key] for each in pair.lengths[part]], frame))
            octaves.append(_curve(part, measured.octaves, pair.octaves[part], frame))
            shares.append(_curve(part, measured.positions, pair.shares[part], frame))
        octaves.append(
            _reference(parts, measured.octaves, [each.value for each in measured.octave_parts], frame)
        )
    position = Axis(label="position in the response, tokens (log scale)", scale="log")
    return [
        *candidates,
        Figure(
            id=f"fidelity-lengths-cosine{suffix}", section="fidelity",
            title=f"Gradient cosine, by response length{name}",
            text="Cosine of one batch's gradient with the on-policy gradient, where only the responses of one bin of "
            f"length count ({from_to} sampled tokens on).",
            x=Axis(label="bin of response length", whole=True), y=Axis(label="cosine with the on-policy gradient"),
            series=lengths["batch_cosine"], parts=parts, frames=frames,
        ),
        Figure(
            id=f"fidelity-lengths{suffix}", section="fidelity", title=f"Signal kept, by response length{name}",
            text="Component of the expected gradient along the on-policy one, among the responses of each bin of "
            f"length ({from_to} sampled tokens on), relative to on-policy. 1 keeps the whole signal.",
            x=Axis(label="bin of response length", whole=True), y=Axis(label="component, on-policy = 1"),
            series=lengths["component"], parts=parts, frames=frames,
        ),
        Figure(
            id=f"fidelity-positions{suffix}", section="fidelity", title=f"Signal kept, by position{name}",
            text="What each octave of positions adds to the component; the values of an objective sum to it. Dotted: "
            "on-policy sampling. Where a curve lies below that line, the objective loses signal.",
            x=position, y=Axis(label="part of the component"), series=octaves, parts=parts,
            frames=frames,
        ),
        Figure(
            id=f"fidelity-shares{suffix}", section="fidelity", title=f"Effective share of the weights{name}",
            text="Effective sample size of the weights after clipping, as a share of the responses that reach a "
            "position, over both signs of the advantage.",
            x=position, y=Axis(label="share", low=0, high=1, percent=True), series=shares,
            parts=parts, frames=frames,
        ),
    ]  # fmt: skip


def _reference(
    parts: Sequence[str], x: Sequence[float | None], y: Sequence[float | None], frame: int | None = None
) -> Series:
    """The curve of on-policy sampling, the last of the parts."""
    return Series(group=None, part=len(parts) - 1, frame=frame, x=x, y=y, role="reference", name=parts[-1])


def _curve(
    part: int, x: Sequence[float | None], values: Sequence[Interval], frame: int | None = None
) -> Series:
    """The values of one objective; their errors are in the table, where a dozen bands do not hide each other."""
    return Series(group=None, part=part, frame=frame, x=x, y=[each.value for each in values])
