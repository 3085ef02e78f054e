"""Curves over the rollout batches: learning, tool use, and what the trainer recorded on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctpo.report.collection import Collection, Group
from ctpo.report.figures.figure import Axis, Figure, Series, Values, has_values, over_seeds, thinned
from ctpo.runs.reader import Run, number

_MOST_POINTS = 240
_BATCHES = Axis(label="rollout batches", low=0, whole=True)
_TIME = Axis(label="wall-clock, minutes", low=0)


@dataclass(frozen=True, kw_only=True)
class _Metric:
    key: str
    title: str
    text: str
    y: Axis
    section: str = "training"
    large: bool = False
    divided_by: str = ""


def _share(label: str, high: float | None = None) -> Axis:
    return Axis(label=label, low=0, high=high, percent=True)


_METRICS = (
    _Metric(
        key="heldout_pass@1", section="learning", large=True, title="Held-out accuracy",
        text="Share of held-out problems solved, one sample each, measured on the same problems as training goes on. "
        "Look for how early a curve rises, where it ends, and whether it falls again (a collapse).",
        y=_share("held-out pass@1", 1.0),
    ),
    _Metric(
        key="reward", section="learning", large=True, title="Training reward",
        text="Mean reward of the responses of each rollout batch, sampled before the batch is trained on. "
        "The mean height of this curve is the AUC in the tables.",
        y=Axis(label="mean reward"),
    ),
    _Metric(
        key="tool_calls_per_response", section="tools", title="Tool calls per response",
        text="How often the model calls its tool. Look for whether training makes it call more, or unlearns the tool.",
        y=Axis(label="calls per response", low=0),
    ),
    _Metric(
        key="tool_failures", divided_by="tool_calls", section="tools", title="Failed tool calls",
        text="Share of the calls whose program failed (an error, a time limit, no output).",
        y=_share("share of calls"),
    ),
    _Metric(
        key="tool_s", divided_by="batch_s", section="tools", title="Time in the tool",
        text="Share of a rollout batch's time spent waiting for programs. A high share says that a faster sandbox, "
        "not a faster model, would shorten the run.",
        y=_share("share of time", 1.0),
    ),
    _Metric(
        key="clip_fraction", title="Clip fraction",
        text="Share of the batch's tokens whose gradient the trust region cut off. Near zero the objective is "
        "unclipped; above a half most of the data is thrown away.",
        y=_share("share of tokens"),
    ),
    _Metric(
        key="ess", title="Effective sample size",
        text="How many equally weighted tokens the weighted ones are worth, as a share. It falls towards zero when a "
        "few tokens carry all the weight.",
        y=_share("share of tokens", 1.0),
    ),
    _Metric(
        key="log_ratio_std", title="Spread of the log ratio",
        text="Standard deviation of the log ratio that weighs tokens, over the batch: how far the policy has moved "
        "from the one that sampled.",
        y=Axis(label="standard deviation, nats", low=0),
    ),
    _Metric(
        key="kl_k3", title="Distance from the sampling policy",
        text="KL divergence of the policy from the one that sampled the batch, per token (k3 estimate).",
        y=Axis(label="nats per token"),
    ),
    _Metric(
        key="gradient_removed", title="Gradient removed",
        text="Share of the tokens' weights times advantages that the trust region took away: clipping counted by what "
        "the clipped tokens weigh.",
        y=_share("share of gradient"),
    ),
    _Metric(
        key="engine_kl_k3", title="Gap to the rollout engine",
        text="KL divergence between what the rollout engine sampled from and what the trainer computes for the same "
        "weights, per token. It is a numerical error, not learning: it should be tiny and stay so.",
        y=Axis(label="nats per token", low=0),
    ),
    _Metric(
        key="entropy", title="Entropy",
        text="Of the policy, per token. A fast fall to zero means that it no longer explores.",
        y=Axis(label="nats per token", low=0),
    ),
    _Metric(
        key="zero_variance_groups", title="Groups without a signal",
        text="Share of prompts whose samples all got the same reward, which leaves no advantage to learn from.",
        y=_share("share of prompts", 1.0),
    ),
    _Metric(
        key="response_tokens", title="Response length",
        text="Mean number of tokens that the model writes in a response.",
        y=Axis(label="tokens", low=0),
    ),
    _Metric(
        key="truncated", title="Truncated responses",
        text="Share of responses cut off at the length limit.",
        y=_share("share of responses", None),
    ),
    _Metric(
        key="grad_norm", title="Gradient norm",
        text="Before clipping, mean over the batch's updates. Spikes come before a collapse.",
        y=Axis(label="norm", low=0),
    ),
    _Metric(
        key="skipped_updates", title="Skipped updates",
        text="Updates that were not finite and therefore not taken.",
        y=Axis(label="updates", low=0),
    ),
    _Metric(
        key="tokens_per_s", title="Throughput",
        text="Response tokens a second of the whole loop: generation, tools and updates.",
        y=Axis(label="tokens/s", low=0),
    ),
)  # fmt: skip
_CLIP_PARTS = {
    "clip_fraction_high": "upper",
    "clip_fraction_low": "lower",
    "clip_fraction_dual": "dual",
}


def figures(collection: Collection) -> list[Figure]:
    """A figure for each metric that any run recorded."""
    found = []
    for metric in _METRICS:
        series = [
            each
            for place, group in enumerate(collection.groups)
            for each in _series(group, place, metric, single_seeds=metric.large)
        ]
        if metric.key == "skipped_updates" and not any(any(each.y) for each in series):
            continue  # nothing was skipped anywhere: no news
        if series:
            found.append(
                Figure(
                    id=metric.key.replace("@", "-at-").replace("_", "-"), section=metric.section,
                    title=metric.title, text=metric.text, x=_BATCHES, y=metric.y, series=series,
                    other_x=_TIME if metric.large else None, small=not metric.large,
                )
            )  # fmt: skip
    return found


def clip_parts(collection: Collection) -> Figure | None:
    """Which limit clips, over the batches, one group at a time."""
    series = []
    for place, group in enumerate(collection.groups):
        for part, key in enumerate(_CLIP_PARTS):
            metric = _Metric(key=key, title="", text="", y=_BATCHES)
            series += _series(group, place, metric, single_seeds=False, part=part)
    if not series:
        return None
    return Figure(
        id="clip-parts", section="training", title="Which limit clips",
        text="The upper limit holds back tokens with a positive advantage, the lower one those with a negative, and "
        "the dual clip bounds the weight of the latter.",
        x=_BATCHES, y=_share("share of tokens"), series=series, parts=list(_CLIP_PARTS.values()),
        one_group=True, small=True,
    )  # fmt: skip


def _series(
    group: Group, place: int, metric: _Metric, *, single_seeds: bool, part: int | None = None
) -> list[Series]:
    batches = sorted({record["batch"] for run in group.runs for record in run.records})
    batches = [batches[index] for index in thinned(len(batches), _MOST_POINTS)]
    curves = [_curve(run, metric, batches) for run in group.runs]
    told = [(run, curve) for run, curve in zip(group.runs, curves, strict=True) if has_values(curve)]
    if not told:
        return []
    kept = [i for i in range(len(batches)) if any(curve[i] is not None for _, curve in told)]
    x = [batches[i] for i in kept]
    band = over_seeds([[curve[i] for i in kept] for _, curve in told])
    low: Values = band.low
    high: Values = band.high
    if len(told) == 1 and metric.key == "heldout_pass@1":
        low, high = _own_band(told[0][0], x)
    minutes = over_seeds([_minutes(run, x) for run, _ in told]).mean
    found = [
        Series(
            group=place, x=x, y=band.mean, low=low if has_values(low) else None,
            high=high if has_values(high) else None, other_x=minutes, part=part,
        )
    ]  # fmt: skip
    if single_seeds and len(told) > 1:
        found += [
            Series(
                group=place, x=x, y=[curve[i] for i in kept], role="seed", other_x=_minutes(run, x),
                name=f"seed {run.seed}",
            )
            for run, curve in told
        ]  # fmt: skip
    return found


def _curve(run: Run, metric: _Metric, batches: Sequence[int]) -> list[float | None]:
    by_batch = {record["batch"]: record for record in run.records}
    values = []
    for batch in batches:
        record = by_batch.get(batch, {})
        value = number(record.get(metric.key))
        if metric.divided_by and value is not None:
            whole = number(record.get(metric.divided_by))
            value = value / whole if whole else None
        values.append(value)
    return values


def _own_band(run: Run, batches: Sequence[float]) -> tuple[Values, Values]:
    """One run's standard error over held-out problems."""
    by_batch = {record["batch"]: record for record in run.records}
    low: list[float | None] = []
    high: list[float | None] = []
    for batch in batches:
        record = by_batch.get(int(batch), {})
        value, stderr = number(record.get("heldout_pass@1")), number(record.get("heldout_stderr"))
        known = value is not None and stderr is not None
        low.append(value - stderr if known else None)  # type: ignore[operator]
        high.append(value + stderr if known else None)  # type: ignore[operator]
    return low, high


def _minutes(run: Run, batches: Sequence[float]) -> list[float | None]:
    by_batch = {record["batch"]: number(record.get("seconds")) for record in run.records}
    seconds = [by_batch.get(int(batch)) for batch in batches]
    return [None if value is None else value / 60 for value in seconds]
