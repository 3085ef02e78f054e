"""What the trainer's log calls its figures, who gets which of them, and curves for loggers that can draw them.

A figure that TRL's GRPOTrainer logs too has TRL's name, so that one dashboard shows both. All others are under
`objective/`. They reach every logger and the log history, and no console. Records keep names of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Final

from transformers import TrainerCallback

from ctpo.training.scoring.stats import CORRECTION

_TRL_NAMES: Final = {
    "clip_fraction": "clip_ratio/region_mean",
    "clip_fraction_high": "clip_ratio/high_mean",
    "clip_fraction_low": "clip_ratio/low_mean",
    **{
        f"{CORRECTION}weight_{name}": f"sampling/importance_sampling_ratio/{name}"
        for name in ("min", "mean", "max")
    },
    "engine_gap_mean": "sampling/sampling_logp_difference/mean",
    "engine_gap_max": "sampling/sampling_logp_difference/max",
    **{
        name: name
        for name in ("entropy", "kl", "aux_loss", "tools/call_frequency", "tools/failure_frequency")
    },
    **{name: name for name in ("clip_ratio/low_min", "clip_ratio/high_max")},
}
_OURS: Final = "objective/"
_OUR_GROUPS: Final = ("groups/", "curriculum/")
"""Groups of figures of ours that are gathered among TRL's."""
_CONSOLES: Final = ("PrinterCallback", "ProgressCallback", "RichProgressCallback")
"""Callbacks of transformers and TRL that print whatever is logged."""
CURVES: Final = ("clip_ratio", "log_ratio_std", "spread", "ess", "gradient_ess", "gradient_removed")


def logged_name(name: str) -> str:
    """The name under which a figure of ours is logged."""
    return _TRL_NAMES.get(name, f"{_OURS}{name}")


def rename_groups(metrics: dict[str, list[float]]) -> None:
    """Put figures of ours that were gathered among TRL's under our name."""
    for name in [name for name in metrics if name.startswith(_OUR_GROUPS)]:
        metrics[f"{_OURS}{name}"] = metrics.pop(name)


def keep_from_consoles(callbacks: Iterable[TrainerCallback]) -> None:
    """Let callbacks that print what is logged print TRL's figures only. It may be called again."""
    for callback in callbacks:
        names = {each.__name__ for each in type(callback).__mro__}
        if names.intersection(_CONSOLES) and "on_log" not in vars(callback):
            vars(callback)["on_log"] = functools.partial(_without_ours, callback.on_log)


def _without_ours(
    on_log: Callable[..., Any], *arguments: Any, logs: Mapping[str, Any] | None = None, **others: Any
) -> Any:
    if logs is not None:
        logs = {
            name: value for name, value in logs.items() if not name.removeprefix("eval_").startswith(_OURS)
        }
    return on_log(*arguments, logs=logs, **others)


def send_curves(
    line: Mapping[str, Any], step: int, report_to: Iterable[str], callbacks: Iterable[TrainerCallback]
) -> None:
    """Send the curves by position of a rollout batch to the loggers that can draw them, in the main process.

    TensorBoard gets one histogram per curve. Weights & Biases and trackio get one table.

    Args:
        line: a line of `profile.jsonl`.
        step: optimizer steps so far.
        report_to: names of loggers.
        callbacks: of the trainer, transformers' loggers among them.
    """
    curves = curves_of(line)
    for callback in callbacks:
        writer = getattr(callback, "tb_writer", None)
        if writer is not None:
            for name in CURVES:
                _histogram(writer, f"train/{_OURS}position/{name}", line["edge"], curves[name], step)
    if "wandb" in report_to:
        wandb = import_module("wandb")
        if wandb.run is not None:
            rows = [list(row) for row in zip(*curves.values(), strict=True)]
            table = wandb.Table(columns=list(curves), data=rows)
            wandb.log({f"train/{_OURS}position": table, "train/global_step": step})
    if "trackio" in report_to:
        trackio, table = import_module("trackio"), import_module("pandas").DataFrame(curves)
        trackio.log({f"train/{_OURS}position": trackio.Table(dataframe=table)}, step=step)


def curves_of(line: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The curves of a profile line by position: the upper end of each bin in tokens, and a value or None."""
    bins = zip(line["count"], line["high"], line["low"], strict=True)
    clipped = [(high + low) / count if count else None for count, high, low in bins]
    others = {name: line[name] for name in CURVES[1:]}
    return {"position": list(line["edge"]), "clip_ratio": clipped, **others}


def _histogram(writer: Any, tag: str, edges: list[int], values: list[float | None], step: int) -> None:
    """Write a curve as a histogram over positions, whose height is the value.

    A bucket counts its value times its width, because TensorBoard spreads the count of a bucket over its width.
    """
    widths = [upper - lower for lower, upper in zip([0, *edges[:-1]], edges, strict=True)]
    counts = [(value or 0.0) * width for value, width in zip(values, widths, strict=True)]
    total = sum(counts)
    if total > 0:
        middle = [upper - width / 2 for upper, width in zip(edges, widths, strict=True)]
        weighted = sum(m * count for m, count in zip(middle, counts, strict=True))
        squared = sum(m * m * count for m, count in zip(middle, counts, strict=True))
        writer.add_histogram_raw(
            *(tag, 0.0, float(edges[-1]), total, weighted, squared, [float(edge) for edge in edges], counts),
            global_step=step,
        )
