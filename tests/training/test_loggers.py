"""The figures of a run, read back from TensorBoard's event files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.training.run.train import train
from ctpo.training.step.loggers import curves_of

OF_ENGINES = {
    *("tools/call_frequency", "tools/failure_frequency"),
    *(f"sampling/sampling_logp_difference/{name}" for name in ("mean", "max")),
}
"""TRL's names for figures of its own tools and of vLLM, which are logged for a rollout function of ours too."""


def events(path: Path) -> Iterator[Any]:
    """The events of a file, whose records are a length, its checksum, the content, and its checksum."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_what_reaches_the_loggers(small_recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run = train(small_recipe(tmp_path / "run", report_to="tensorboard")).run
    (path,) = run.path.rglob("events.out.tfevents.*")
    logged: dict[tuple[str, int], float] = {}
    histograms = {}
    for event in events(path):
        for value in event.summary.value:
            if value.HasField("histo"):
                histograms[value.tag, event.step] = value.histo
                continue
            assert logged.setdefault((value.tag, event.step), value.simple_value) == value.simple_value
    profiles = [json.loads(line) for line in run.profile.read_text().splitlines()]
    for record, line in zip(run.records()[1:], profiles, strict=True):
        step = record["step"]
        for theirs, ours in {
            "reward": "reward",
            "entropy": "entropy",
            "clip_ratio/region_mean": "clip_fraction",
            "clip_ratio/low_mean": "clip_fraction_low",
            "clip_ratio/high_mean": "clip_fraction_high",
            "sampling/sampling_logp_difference/mean": "engine_gap_mean",
            "completions/max_length": "response_tokens_max",
            "tools/call_frequency": "tool_calls_per_response",
            "objective/gradient_removed": "gradient_removed",
            "objective/spread_power": "spread_power",
            "objective/ess": "ess",
        }.items():
            assert logged[f"train/{theirs}", step] == pytest.approx(record[ours], rel=1e-5), theirs
        for tag, name in (("pass_at_1", "heldout_pass@1"), ("tool_calls", "heldout_tool_calls")):
            assert logged[f"eval/{tag}", step] == pytest.approx(record[name], rel=1e-5)
        assert logged["train/clip_ratio/low_min", step] <= record["clip_fraction_low"]
        assert logged["train/clip_ratio/high_max", step] >= record["clip_fraction_high"]
        # Curves by position are no scalars. A histogram has the value of each bin as its height.
        for name, values in curves_of(line).items():
            if name == "position" or not any(values):
                continue
            histogram = histograms[f"train/objective/position/{name}", step]
            heights = dict(zip(histogram.bucket_limit, histogram.bucket, strict=True))
            for lower, upper, value in zip([0, *line["edge"]], line["edge"], values, strict=False):
                assert heights.get(upper, 0.0) == pytest.approx((value or 0.0) * (upper - lower)), name
    assert not [tag for tag, _ in logged if "position" in tag]
    trls = {"clip_ratio", "completions", "rewards", "sampling", "tools", "objective"}
    assert {tag.split("/")[1] for tag, _ in logged if tag.count("/") > 1} <= trls


class Heard(TrainerCallback):
    """A logger of a user's own."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(dict(logs))


def test_consoles_print_trls_figures_only(
    fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything stock TRL logs has its name; ours are below `objective/`, for loggers and the history, not printed."""
    ours, theirs = Heard(), Heard()
    settings = {"max_steps": 4, "logging_steps": 4, "beta": 0.1, "entropy_coef": 0.01}
    fit(GRPOTrainer, GRPOConfig, callbacks=[theirs], bf16=False, **settings)
    stock = {name for logs in theirs.logs for name in logs}
    capsys.readouterr()
    trainer = fit(CTPOTrainer, CTPOConfig, callbacks=[ours], keep_printer=True, **settings)
    printed = capsys.readouterr().out
    logged = {name for logs in ours.logs for name in logs}
    assert {name for name in logged if "objective/" in name}
    assert stock - logged == set()
    assert {name for name in logged - stock if not name.startswith("objective/")} <= OF_ENGINES
    assert "clip_ratio/low_min" in printed
    assert "objective/" not in printed
    assert "objective/ess" in trainer.state.log_history[0]
