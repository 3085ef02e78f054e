"""Curves over the rollout batches: learning, tool use, and what the trainer recorded about its updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctpo.report.collection import Collection, Group
from ctpo.report.figures.figure import Axis, Figure, Series, Values, drawn, has_values, over_seeds, thinned
from ctpo.runs.reader import Run, number
from ctpo.runs.scores import score_name

_MOST_POINTS = 240
_BATCHES = Axis(label="rollout batches", low=0, whole=True)
_STEPS = Axis(label="optimizer steps", low=0, whole=True)
_TIME = Axis(label="wall-clock, minutes", low=0)
_LONG_RUN_S = 600
"""The learning curve of a longer run has minutes on its axis instead of seconds."""


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """One figure of `metrics.jsonl` and how it is shown."""

    key: str
    title: str
    text: str
    y: Axis
    x: Axis = _BATCHES
    section: str = "training"
    large: bool = False
    divided_by: str = ""
    """The name of another figure to divide by."""


def _share(label: str, high: float | None = None) -> Axis:
    return Axis(label=label, low=0, high=high, percent=True)


_METRICS = (
    _Metric(
        key="heldout_loss", section="learning", large=True, x=_STEPS, title="Held-out loss of the warm-up",
        text="Mean −log p of the tokens to be written, over solutions that are not trained on. Where it rises while "
        "the training loss falls, the model learns the solutions by heart: use fewer epochs.",
        y=Axis(label="nats per token"),
    ),
    _Metric(
        key="loss", section="learning", large=True, x=_STEPS, title="Training loss of the warm-up",
        text="Mean −log p of the tokens to be written, over the rows of an optimizer step, before that step.",
        y=Axis(label="nats per token"),
    ),
    _Metric(
        key="heldout_pass@1", section="learning", large=True, title="Held-out accuracy",
        text="Share of held-out problems solved, with one sample per problem. The last evaluation uses all problems. "
        "The others draw from them in one order and may end earlier (eval_stderr). Look for how early a curve rises, "
        "where it ends, and whether it falls again (a collapse).",
        y=_share("held-out pass@1", 1.0),
    ),
    _Metric(
        key="heldout_reward", section="learning", large=True, title="Held-out reward",
        text="Mean reward on the evaluation dataset of a Python script. Look for whether it rises with the training "
        "reward; if only that one rises, the policy learns its training prompts by heart.",
        y=Axis(label="mean held-out reward"),
    ),
    _Metric(
        key="reward", section="learning", large=True, title="Training reward",
        text="Mean reward of the responses that each rollout batch trains on, sampled before the policy does so. "
        "The mean height of this curve is the AUC in the tables.",
        y=Axis(label="mean reward"),
    ),
    _Metric(
        key="reward_sampled", section="learning", large=True, title="Reward of all samples",
        text="Mean reward of all responses that each rollout batch sampled, where only some groups are trained on. "
        "Groups whose rewards differ are preferred, so the training reward is nearer to one half than what the policy "
        "earns. This curve is not.",
        y=Axis(label="mean reward"),
    ),
    _Metric(
        key="tool_calls_per_response", section="tools", title="Tool calls per response",
        text="How often the model calls its tool. Look for whether training makes it call more often, or less.",
        y=Axis(label="calls per response", low=0),
    ),
    _Metric(
        key="tool_failures", divided_by="tool_calls", section="tools", title="Failed tool calls",
        text="Share of the tool calls whose program failed: it raised an error, ran out of time or printed nothing.",
        y=_share("share of calls"),
    ),
    _Metric(
        key="tool_s", divided_by="batch_s", section="tools", title="Time in the tool",
        text="Share of a rollout batch's time spent waiting for programs. If the share is high, a faster sandbox would "
        "shorten the run more than a faster model.",
        y=_share("share of time", 1.0),
    ),
    _Metric(
        key="clip_fraction", title="Clip fraction",
        text="Share of the batch's tokens whose gradient the trust region removed. Near zero the objective works "
        "without clipping; above one half, most of the data is lost.",
        y=_share("share of tokens"),
    ),
    _Metric(
        key="ess", title="Effective sample size",
        text="The number of equally weighted tokens that would give as precise an estimate, as a share of all tokens. "
        "It falls towards zero when a few tokens carry all the weight.",
        y=_share("share of tokens", 1.0),
    ),
    _Metric(
        key="log_ratio_std", title="Spread of the log ratio",
        text="Standard deviation over the batch of the log ratio that weights the tokens. It shows how far the policy "
        "has moved from the one that sampled.",
        y=Axis(label="standard deviation, nats", low=0),
    ),
    _Metric(
        key="kl_k3", title="Distance from the sampling policy",
        text="KL divergence of the policy from the one that sampled the batch, per token (k3 estimate).",
        y=Axis(label="nats per token"),
    ),
    _Metric(
        key="gradient_removed", title="Gradient removed",
        text="Share of the gradient that the trust region removed. Each token counts by the size of its advantage, "
        "whatever its weight. Runs of earlier releases counted it by its weight too.",
        y=_share("share of gradient"),
    ),
    _Metric(
        key="engine_kl_k3", title="Gap to the rollout engine",
        text="KL divergence per token between the probabilities of the rollout engine and those that the trainer "
        "computes for the same weights. It is a numerical error and should stay tiny.",
        y=Axis(label="nats per token", low=0),
    ),
    _Metric(
        key="correction_rejected_fraction", title="Rejected by the rollout correction",
        text="Share of the tokens whose probability the rollout engine and the trainer disagree on too much. They add "
        "nothing to the gradient. If the share grows, engine and trainer drift apart.",
        y=_share("share of tokens"),
    ),
    _Metric(
        key="correction_ess", title="Effective sample size of the rollout correction",
        text="The number of equally weighted tokens that would give as precise an estimate, as a share of all tokens. "
        "It counts the weights of the correction alone, and rejected tokens as 0.",
        y=_share("share of tokens", 1.0),
    ),
    _Metric(
        key="entropy", title="Entropy",
        text="Entropy of the policy per token. A fast fall to zero means that it no longer explores.",
        y=Axis(label="nats per token", low=0),
    ),
    _Metric(
        key="zero_variance_groups", title="Groups without a signal",
        text="Share of prompts whose samples all got the same reward. With one advantage per response there is nothing "
        "to learn from them.",
        y=_share("share of prompts", 1.0),
    ),
    _Metric(
        key="response_tokens", title="Response length",
        text="Mean number of tokens that the model writes in a response.",
        y=Axis(label="tokens", low=0),
    ),
    _Metric(
        key="truncated", title="Truncated responses",
        text="Share of responses that were cut off at the length limit.",
        y=_share("share of responses", None),
    ),
    _Metric(
        key="grad_norm", title="Gradient norm",
        text="Norm of the gradient of the batch's last update, before it is clipped. Spikes often come before a "
        "collapse.",
        y=Axis(label="norm", low=0),
    ),
    _Metric(
        key="gradient_norm_max", title="Largest gradient norm",
        text="The largest norm of the gradient among the batch's updates, before it is clipped.",
        y=Axis(label="norm", low=0),
    ),
    _Metric(
        key="gradient_noise", title="Noise of the gradient",
        text="Share of the squared norm of an update's gradient that is sampling noise, from the micro-batches that it "
        "accumulates. Near 100 %, a larger minibatch would give a better direction; near 0 it would not. It is an "
        "estimate, and single batches may read beyond either end.",
        y=_share("share of the squared norm"),
    ),
    _Metric(
        key="critic_explained_variance", title="Variance that the critic explains",
        text="How much of the variance of the returns the critic's values explain, before it learned from the batch. "
        "At 0 they are as good as the mean return, below 0 worse. Values that lag behind a rising reward explain less.",
        y=Axis(label="share of variance", percent=True),
    ),
    _Metric(
        key="critic_value_loss", title="Loss of the critic",
        text="Half the mean squared distance of the critic's values from their targets, before it learned from them.",
        y=Axis(label="squared reward", low=0),
    ),
    _Metric(
        key="skipped_updates", title="Skipped updates",
        text="Updates that were not taken because their gradient was not finite.",
        y=Axis(label="updates", low=0),
    ),
    _Metric(
        key="tokens_per_s", title="Throughput",
        text="Response tokens per second of the whole loop: generation, tools and updates.",
        y=Axis(label="tokens/s", low=0),
    ),
)  # fmt: skip
_CLIP_PARTS = {
    "clip_fraction_high": "upper",
    "clip_fraction_low": "lower",
    "clip_fraction_dual": "dual",
}


def figures(collection: Collection) -> list[Figure]:
    """Return one figure for each metric that any run recorded, and one of what clips."""
    shown = []
    for metric in _METRICS:
        series = [
            each
            for place, group in enumerate(collection.groups)
            if (metric.x is _STEPS) == group.runs[0].of_warm_up
            for each in _series(group, place, metric, single_seeds=metric.large)
        ]
        if metric.key == "skipped_updates" and not any(any(each.y) for each in series):
            continue  # a figure of zeros would only take room
        if series:
            graded = metric.key == "heldout_pass@1" and collection.score_name == "score"
            shown.append(
                Figure(
                    id=metric.key.replace("@", "-at-").replace("_", "-"), section=metric.section,
                    title="Held-out score" if graded else metric.title,
                    text=metric.text.replace("Share of held-out problems solved", "Mean score on held-out problems")
                    if graded else metric.text,
                    x=metric.x, y=_share("held-out score", 1.0) if graded else metric.y, series=series,
                    other_x=_TIME if metric.large else None, small=not metric.large,
                )
            )  # fmt: skip
    return [*shown, *_clip_parts(collection)]


def _clip_parts(collection: Collection) -> list[Figure]:
    """Return the figure of which limit clips, one group at a time; none if no run recorded it."""
    series = []
    for place, group in enumerate(collection.groups):
        for part, key in enumerate(_CLIP_PARTS):
            metric = _Metric(key=key, title="", text="", y=_BATCHES)
            series += _series(group, place, metric, single_seeds=False, part=part)
    figure = Figure(
        id="clip-parts", section="training", title="Which limit clips",
        text="The upper limit clips tokens with a positive advantage, the lower limit those with a negative one. The "
        "dual clip bounds the weight of tokens with a negative advantage.",
        x=_BATCHES, y=_share("share of tokens"), series=series, parts=list(_CLIP_PARTS.values()),
        one_group=True, small=True,
    )  # fmt: skip
    return [figure] if series else []


def learning_curve(run: Run) -> Figure:
    """Return the figure of one run's learning: held-out accuracy and training reward against wall-clock time."""
    long = any((number(record.get("seconds")) or 0.0) > _LONG_RUN_S for record in run.records)
    unit, seconds_per_unit = ("minutes", 60.0) if long else ("seconds", 1.0)
    batches = [record["batch"] for record in run.records]
    x = _seconds(run, batches, seconds_per_unit)
    accuracy, reward = (_column(run, name, batches) for name in ("heldout_pass@1", "reward"))
    measured = [place for place, value in enumerate(accuracy) if value is not None]
    low, high = _error_over_problems(run, [batches[place] for place in measured])
    curves = [
        Series(group=0, part=1, x=x, y=reward),
        Series(
            group=0, part=0, x=[x[place] for place in measured], y=[accuracy[place] for place in measured],
            low=drawn(low), high=drawn(high),
        ),
    ]  # fmt: skip
    known = [value for value in accuracy if value is not None]
    name = score_name((run.summary.get("before"), run.summary.get("after")))
    gain = f": held-out {name} {known[0]:.2f} → {known[-1]:.2f}" if known else ""
    return Figure(
        id="learning-curve", section="learning", text="", title=f"{run.objective}, seed {run.seed}{gain}",
        x=Axis(label=f"wall-clock, {unit}", low=0),
        y=Axis(label="mean score" if name == "score" else "share of right answers", low=0, high=1),
        series=[each for each in curves if has_values(each.y)],
        parts=[f"held-out {name} ± standard error", "training reward per rollout batch"],
    )  # fmt: skip


def _series(
    group: Group, place: int, metric: _Metric, *, single_seeds: bool, part: int | None = None
) -> list[Series]:
    """Return the mean curve of a group over its seeds, and if asked the curve of every seed; none without values."""
    batches = sorted({record["batch"] for run in group.runs for record in run.records})
    batches = [batches[index] for index in thinned(len(batches), _MOST_POINTS)]
    curves = [_column(run, metric.key, batches, metric.divided_by) for run in group.runs]
    recorded = [(run, curve) for run, curve in zip(group.runs, curves, strict=True) if has_values(curve)]
    if not recorded:
        return []
    kept = [i for i in range(len(batches)) if any(curve[i] is not None for _, curve in recorded)]
    x = [batches[i] for i in kept]
    band = over_seeds([[curve[i] for i in kept] for _, curve in recorded])
    low: Values = band.low
    high: Values = band.high
    if len(recorded) == 1 and metric.key == "heldout_pass@1":
        low, high = _error_over_problems(recorded[0][0], x)
    minutes = over_seeds([_seconds(run, x, 60) for run, _ in recorded]).mean
    series = [
        Series(
            group=place, x=x, y=band.mean, low=drawn(low), high=drawn(high), other_x=minutes, part=part
        )
    ]  # fmt: skip
    if single_seeds and len(recorded) > 1:
        series += [
            Series(
                group=place, x=x, y=[curve[i] for i in kept], role="seed", other_x=_seconds(run, x, 60),
                name=f"seed {run.seed}",
            )
            for run, curve in recorded
        ]  # fmt: skip
    return series


def _column(run: Run, key: str, batches: Sequence[int], divided_by: str = "") -> list[float | None]:
    """Return a metric at these rollout batches; None where the run has no number."""
    by_batch = {record["batch"]: record for record in run.records}
    values = []
    for batch in batches:
        record = by_batch.get(batch, {})
        value = number(record.get(key))
        if divided_by and value is not None:
            whole = number(record.get(divided_by))
            value = value / whole if whole else None
        values.append(value)
    return values


def _error_over_problems(run: Run, batches: Sequence[int]) -> tuple[Values, Values]:
    """Return the held-out accuracy minus and plus its standard error over the held-out problems."""
    accuracy, stderr = (_column(run, name, batches) for name in ("heldout_pass@1", "heldout_stderr"))
    pairs = list(zip(accuracy, stderr, strict=True))
    low = [None if value is None or error is None else value - error for value, error in pairs]
    high = [None if value is None or error is None else value + error for value, error in pairs]
    return low, high


def _seconds(run: Run, batches: Sequence[int], seconds_per_unit: float) -> list[float | None]:
    """Return the wall-clock time of the run at the end of these rollout batches, in a unit of so many seconds."""
    return [None if value is None else value / seconds_per_unit for value in _column(run, "seconds", batches)]
