"""The figures of a run, read back from TensorBoard's event files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from ctpo.training.run.train import train


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
    for event in events(path):
        for value in event.summary.value:
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
            "gradient_removed": "gradient_removed",
            "spread_power": "spread_power",
        }.items():
            assert logged[f"train/{theirs}", step] == pytest.approx(record[ours], rel=1e-5), theirs
        for tag, name in (("pass_at_1", "heldout_pass@1"), ("tool_calls", "heldout_tool_calls")):
            assert logged[f"eval/{tag}", step] == pytest.approx(record[name], rel=1e-5)
        for i, edge in enumerate(line["edge"]):
            if line["count"][i]:
                clipped = (line["high"][i] + line["low"][i]) / line["count"][i]
                assert logged[f"train/position/clip_ratio/{edge:05d}", step] == pytest.approx(
                    clipped, rel=1e-5
                )
                spread = logged[f"train/position/log_ratio_std/{edge:05d}", step]
                assert spread == pytest.approx(line["log_ratio_std"][i], rel=1e-5)
            else:
                assert (f"train/position/clip_ratio/{edge:05d}", step) not in logged
