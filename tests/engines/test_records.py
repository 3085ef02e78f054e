"""What verl measures, as the records that reports read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ctpo.engines.verl.files import rows
from ctpo.engines.verl.records import VerlRecords
from ctpo.runs.directory import RunDirectory
from ctpo.runs.reader import read_run
from ctpo.tasks import Problem


def test_records_of_two_batches(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open({"task": "arithmetic"}, {})
    records = VerlRecords(run, updates=8)
    records.evaluated(0, {"val-core/arithmetic/acc/mean@1": 0.25, "val-aux/num_turns/mean": 3.0}, 101)
    metrics = {
        "critic/score/mean": np.float64(0.5),
        "actor/ctpo/clip_fraction": 0.2,
        "actor/ctpo/log_ratio_std": 0.3,
        "actor/lr": 3e-4,
        "timing_s/step": 4.0,
        "timing_s/update_actor": 2.0,
        "timing_s/old_log_prob": 0.5,
        "training/off_policy/trajectory_staleness/mean": np.float64(1.0),
        "perf/throughput": 1.0,
    }
    says = [
        {"acc": 1.0, "calls": 2, "failures": 1, "truncated": 0.0, "masked": 0.0},
        {"acc": 0.0, "calls": 0, "failures": 0, "truncated": 1.0, "masked": 1.0},
    ]
    records.trained(1, metrics, says)
    records.evaluated(2, {"val-core/arithmetic/acc/mean@1": 0.75}, 101)
    records.trained(2, metrics, [])
    first, second, third = run.records()
    assert (first["batch"], first["step"], first["heldout_pass@1"]) == (0, 0, 0.25)
    assert first["heldout_pass@1_stderr"] == pytest.approx((0.25 * 0.75 / 100) ** 0.5)
    expected = {
        "batch": 1,
        "step": 8,
        "reward": 0.5,
        "clip_fraction": 0.2,
        "log_ratio_std": 0.3,
        "learning_rate": 3e-4,
        "batch_s": 4.0,
        "training_s": 2.5,
        "staleness": 1.0,
        "tool_calls": 2,
        "tool_calls_per_response": 1.0,
        "tool_failures": 1,
        "truncated": 0.5,
        "masked": 0.5,
        "correct": 0.5,
    }
    assert {name: second[name] for name in expected} == expected
    assert "heldout_pass@1" not in second
    assert third["heldout_pass@1"] == 0.75
    run.check_figures(16)
    assert not [note for note in read_run(run.path).notes if "metrics" in note]


def test_a_problem_reaches_the_agent_loop_whole() -> None:
    problems = [
        Problem(prompt="1+1", answer="2", id="a"),
        Problem(
            prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], answer="3", id="b"
        ),
    ]
    written = rows(problems, "arithmetic")
    assert [Problem(**json.loads(row["extra_info"]["problem"])) for row in written] == problems
    assert written[0]["prompt"] == [{"role": "user", "content": "1+1"}]
