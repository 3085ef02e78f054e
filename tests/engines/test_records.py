"""What verl measures, as the records that reports, calibration and comparisons read."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctpo.engines.verl.console import followed, kept_aside
from ctpo.engines.verl.dealing import dealt
from ctpo.engines.verl.export import last_checkpoint
from ctpo.engines.verl.files import rows
from ctpo.engines.verl.ratios import Ratios
from ctpo.engines.verl.records import VerlRecords
from ctpo.objectives import preset
from ctpo.runs.directory import RunDirectory
from ctpo.runs.profiles import read_checked_profiles
from ctpo.runs.reader import read_run
from ctpo.tasks import Problem
from ctpo.training.diagnostics.profile import PositionProfile
from ctpo.training.diagnostics.record import profile_line
from ctpo.training.records.events import Silent
from ctpo.training.scoring.stats import WEIGHT, StatsAccumulator

LONGEST = 40


def heldout(place: int, right: bool) -> dict[str, Any]:
    """A held-out response as our agent loop writes it."""
    return {
        "place": place,
        "id": str(place),
        "sample": 0,
        "prompt": "1+1=",
        "answer": "2",
        "completion": "2",
        "found": "2",
        "correct": right,
        "verdict": "right" if right else "wrong",
        "finished": True,
        "tokens": 10,
        "calls": [],
        "too_long": False,
        "error": None,
    }


def columns(seed: int, responses: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    """The log-probs and the tensors of a micro-batch, with a tool's output in every response."""
    g = torch.Generator().manual_seed(seed)
    shape = (responses, LONGEST - seed)
    logps = -torch.rand(shape, generator=g)
    mask = torch.ones(shape, dtype=torch.long)
    mask[:, 3:6] = 0
    tokens = torch.randint(5, 60, shape, generator=g)
    return logps, {
        "prompts": tokens[:, :4],
        "prompt_mask": torch.ones(responses, 4),
        "responses": tokens,
        "completion_mask": torch.ones(shape, dtype=torch.bool),
        "response_mask": mask,
        "old_log_probs": (logps + 0.1 * torch.randn(shape, generator=g)).clamp(max=0.0),
        "advantages": torch.randn((responses, 1), generator=g).expand(shape),
    }


class Tokenizer:
    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(64 + each) for each in ids)


def test_records_of_two_batches(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open({"task": "arithmetic"}, {})
    records = VerlRecords(
        run, updates=8, objective=preset("ctpo"), longest=LONGEST, transcripts=1, every=2, length=2
    )
    records.evaluated(0, [heldout(0, True), *(heldout(place, False) for place in range(1, 4))])
    metrics = {
        "critic/score/mean": np.float64(0.5),
        "actor/lr": 3e-4,
        "timing_s/step": 4.0,
        "timing_s/update_actor": 2.0,
        "timing_s/old_log_prob": 0.5,
        "training/off_policy/trajectory_staleness/mean": np.float64(1.0),
        "perf/throughput": 1.0,
    }
    says = [
        {"acc": 1.0, "tokens": 30, "calls": 2, "failures": 1, "truncated": 0.0, "masked": 0.0},
        {"acc": 0.0, "tokens": 10, "calls": 0, "failures": 0, "truncated": 1.0, "masked": 1.0},
    ]
    records.trained(1, metrics, says)
    records.evaluated(2, [heldout(place, place < 3) for place in range(4)])
    records.trained(2, metrics, [])
    first, second, third = run.records()
    assert (first["batch"], first["step"], first["heldout_pass@1"]) == (0, 0, 0.25)
    assert first["heldout_stderr"] == pytest.approx((0.25 * 0.75 / 3) ** 0.5)
    expected = {
        "batch": 1,
        "step": 8,
        "reward": 0.5,
        "learning_rate": 3e-4,
        "batch_s": 4.0,
        "training_s": 2.5,
        "staleness": 1.0,
        "tokens": 40,
        "tokens_per_s": 10.0,
        "response_tokens": 20.0,
        "tool_calls": 2,
        "tool_calls_per_response": 1.0,
        "tool_failures": 1,
        "truncated": 0.5,
        "masked": 0.5,
        "correct": 0.5,
    }
    assert {name: second[name] for name in expected} == expected
    assert "heldout_pass@1" not in second
    assert (third["heldout_pass@1"], third["heldout_gain"]) == (0.75, 0.5)
    run.check_figures(16)
    assert [row["id"] for row in run.read_transcripts(2)] == ["0"]
    assert not [note for note in read_run(run.path).notes if "metrics" in note]


@pytest.mark.parametrize("objective", ["ctpo", "gspo"])
def test_the_profile_of_two_processes_is_that_of_one(tmp_path: Path, objective: str) -> None:
    """Each process keeps its own responses of three updates. Together they are what one process would have seen."""
    ours = preset(objective)
    processes = [Ratios(ours, LONGEST, Tokenizer()) for _ in range(2)]
    whole, pooled = PositionProfile(lambda: ours, LONGEST), StatsAccumulator()
    for update in range(3):
        for rank, process in enumerate(processes):
            process.start_update()
            logps, tensors = columns(2 * update + rank)
            named = (logps, *(tensors[name] for name in ("old_log_probs", "advantages", "response_mask")))
            stats = ours(*named).stats
            process.add(logps, tensors, {name: float(value) for name, value in stats.items()})
            pooled.add({**stats, WEIGHT: stats["tokens"]})
            wide = [torch.nn.functional.pad(each, (0, LONGEST - each.shape[1])) for each in named]
            whole.add(*wide[:3], wide[3].bool(), update=8 + update)
    run = RunDirectory(tmp_path / "run")
    run.open({"task": "arithmetic"}, {})
    records = VerlRecords(run, updates=8, objective=ours, longest=LONGEST, transcripts=3, length=2)
    assert records.samples(2) == 3
    records.trained(2, {}, [], [process.take(3) for process in processes])
    accelerator = SimpleNamespace(device="cpu", gather=lambda each: each)
    statistics = pooled.flush(accelerator)
    (record,) = run.records()
    for name in ("clip_fraction", "log_ratio_std", "log_ratio_max", "ess", "kl_k3"):
        assert record[name] == pytest.approx(statistics[name], rel=1e-6), name
    alone = whole.close(accelerator)
    assert alone is not None
    (line,) = [json.loads(each) for each in run.profile.read_text().splitlines()]
    wanted = json.loads(json.dumps(profile_line(alone, ours)))
    for name, value in wanted.items():
        if isinstance(value, list) and value and isinstance(value[0], float):
            assert line[name] == pytest.approx(value, rel=1e-6), name
    assert line["count"] == wanted["count"]
    assert line["updates"]["update"] == [9, 10, 11]
    assert line["updates"]["clip_fraction"] == pytest.approx(wanted["updates"]["clip_fraction"])
    assert read_checked_profiles(run)[2].columns["spread"] is not None
    (sample, *_) = [json.loads(each) for each in run.samples(2).read_text().splitlines()]
    assert len(sample["tokens"]) == len(sample["log_ratio"]) == LONGEST - 4
    assert sample["model"][:7] == [1, 1, 1, 0, 0, 0, 1]
    assert all(process.take(3).sums is None for process in processes)


def test_an_objective_that_looks_at_the_whole_batch_is_asked_once_per_forward_pass() -> None:
    ours = preset("sequence-quantile")
    assert not ours.row_wise
    ratios = Ratios(ours, LONGEST, Tokenizer())
    for seed in range(3):
        ratios.start_update()
        ratios.add(*columns(seed), {"tokens": 7.0})
    sums = ratios.take(0).sums
    assert sums is not None
    assert sorted(sums.updates) == [0, 1, 2]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_updates_hold_whole_groups_wherever_responses_were_finished(processes: int) -> None:
    """16 groups of 4 in 4 updates, and their order says nothing about when a response was finished."""
    random = torch.Generator().manual_seed(0)
    names = [f"{int(each):05}" for each in torch.randperm(16, generator=random)]
    finished = [(f"{name}_{session}_0", session) for session in range(4) for name in names]
    tags: list[dict[str, Any]] = [{"seq_len": 10 * (session + 1)} for _, session in finished]
    keys = [key for key, _ in finished]
    order = dealt(keys, tags, 4, processes)
    assert sorted(order) == list(range(64))
    shares = torch.tensor(order).reshape(processes, 4, -1)  # process, update, its rows
    for update in range(4):
        rows = shares[:, update]
        assert len({keys[int(row)].split("_")[0] for row in rows.flatten()}) == 4
        tokens = [sum(tags[int(row)]["seq_len"] for row in part) for part in rows]
        assert set(tokens) == {400 // processes}
    tags[order[0]]["is_padding"] = True
    assert order[0] in dealt(keys, tags, 4, 1)[-16:]


def test_what_others_print_goes_to_a_file_and_ours_is_shown(tmp_path: Path, capfd: Any) -> None:
    run, log, seen = RunDirectory(tmp_path / "run"), tmp_path / "log", Shown()
    run.open({"task": "arithmetic"}, {})
    run.append({"batch": 0, "step": 0, "seconds": 1.0})
    print("before")
    with kept_aside(log), followed(run, log, seen):
        for text in ("noise\n", "\x1b[36m(W pid=7)\x1b[0m x.py:3: W: ctpo: every ratio was 1\x1b[0m\n") * 2:
            subprocess.run(["printf", "%s", text], check=True)
        os.write(2, b"ctpo: registered with verl, loss_mode=ctpo\n")
        run.append({"batch": 1, "step": 4, "seconds": 2.0})
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")
    assert log.read_text().count("noise\n") == 2
    assert "registered with verl" in log.read_text()
    assert seen.notices == ["every ratio was 1"]
    assert [record["batch"] for record in seen.records] == [1]


def test_a_record_is_shown_once_when_its_line_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctpo.engines.verl.console._POLL_S", 0.01)
    run, log, seen = RunDirectory(tmp_path / "run"), tmp_path / "log", Shown()
    run.open({"task": "arithmetic"}, {})
    with followed(run, log, seen), run.metrics.open("a") as file:
        for part in ('{"batch": 1, ', '"step": 4}\n{"batch"', ": 2}\n"):
            file.write(part)
            file.flush()
            time.sleep(0.1)
    assert seen.records == [{"batch": 1, "step": 4}, {"batch": 2}]


class Shown(Silent):
    """A listener that keeps what it is given."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.records: list[dict[str, Any]] = []

    def notice(self, what: str) -> None:
        self.notices.append(what)

    def recorded(self, record: dict[str, Any]) -> None:
        self.records.append(record)


def test_the_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    """A checkpoint whose rollout batch has no record yet is passed over."""
    assert last_checkpoint(tmp_path, 9) is None
    for step in (2, 4, 10):
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
    (tmp_path / "global_step_5").mkdir()  # its weights were removed
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    for recorded, step in ((12, 10), (10, 10), (9, 4), (3, 2)):
        found = last_checkpoint(tmp_path, recorded)
        assert found is not None
        assert found.name == f"global_step_{step}"
    assert last_checkpoint(tmp_path, 1) is None


def test_a_problem_reaches_the_agent_loop_whole() -> None:
    problems = [
        Problem(prompt="1+1", answer="2", id="a"),
        Problem(
            prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], answer="3", id="b"
        ),
    ]
    written = rows(problems, "arithmetic")
    assert [Problem(**json.loads(row["extra_info"]["problem"])) for row in written] == problems
    assert not written[0]["extra_info"]["heldout"]
    assert written[0]["prompt"] == [{"role": "user", "content": "1+1"}]
