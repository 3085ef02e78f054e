"""`ctpo train engine=verl` for real: verl on Ray, on this machine's CPU. Needs verl, and about ten minutes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ctpo.runs.directory import RunDirectory
from ctpo.training.config.recipe import parse_overrides

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transfer_queue") is None,
    reason="verl is not installed (pip install -r tests/adapters/requirements-verl.txt)",
)
SMALL = (
    *("engine=verl", "generation_batch_size=128", "train_problems=256", "eval_every=0", "eval_problems=64"),
    *("rollout_correction=none", "save_steps=4", "transcripts=4"),
)
"""Rollout batches of 128 responses and four updates, each saved."""
PATIENCE_S = 1500


class Ran(NamedTuple):
    """A run that has ended: its directory, its records and what was printed."""

    run: RunDirectory
    records: list[dict[str, Any]]
    printed: str


def start(environment: dict[str, str], log: Path, *words: str) -> subprocess.Popen[str]:
    """`ctpo train` with these words, in a process group of its own. What it prints is added to the log."""
    with log.open("a", encoding="utf-8") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "ctpo", "train", *words],
            env=environment, stdout=stream, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip


def finish(process: subprocess.Popen[str], output: Path, log: Path) -> Ran:
    """Wait for the end of a run and read what it wrote."""
    try:
        code = process.wait(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    printed = log.read_text(encoding="utf-8")
    assert code == 0, printed[-4000:]
    run = RunDirectory(output)
    return Ran(run, run.records(), printed)


def run(environment: dict[str, str], folder: Path, *words: str) -> Ran:
    """A whole run with these words."""
    output, log = folder / "run", folder / "log"
    return finish(start(environment, log, *SMALL, *words, f"output_dir={output}"), output, log)


@pytest.fixture(scope="module")
def killed(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A synchronous run on two FSDP2 processes that is killed after its second rollout batch, and resumed."""
    folder = tmp_path_factory.mktemp("killed")
    output, log = folder / "run", folder / "log"
    words = ("rollout_batches=3", "anchor=old", "per_device_train_batch_size=16", f"output_dir={output}")
    process = start(environment, log, *SMALL, *words, "engine.trainer.n_gpus_per_node=2")
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        if output.is_dir() and len(RunDirectory(output).records()) == 3:
            break
        time.sleep(0.5)
    assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
    process.kill()
    process.wait()
    shutil.copy(output / "metrics.jsonl", folder / "metrics.before")
    refused = start(environment, folder / "refused", "--resume", str(output))
    assert refused.wait(timeout=PATIENCE_S) == 2
    assert "--trust" in (folder / "refused").read_text(encoding="utf-8")
    ran = finish(start(environment, log, "--resume", str(output), "--trust"), output, log)
    before = (folder / "metrics.before").read_text(encoding="utf-8").splitlines()
    after = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(after) == 4
    shared = [line for line in before if line in after]
    assert len(shared) >= 2, "what was recorded before the kill must stay"
    return ran


def test_it_learns_from_weights_that_arrive(killed: Ran) -> None:
    first, *trained = killed.records
    assert first["step"] == 0
    assert [record["step"] for record in trained] == [4, 8, 12]
    for record in trained:
        assert record["rollout_probability_difference"] < 1e-4
        assert 0 < record["clip_fraction"] < 1
        assert record["log_ratio_std"] > 0.01
        assert record["turns"] > 4
        assert record["staleness_max"] == 0
    assert trained[-1]["reward"] >= trained[0]["reward"] + 0.1
    assert first["heldout_problems"] == trained[-1]["heldout_problems"] == 64
    assert trained[-1]["learning_rate"] < trained[0]["learning_rate"] < 3e-4


def test_the_run_directory_is_one_of_ours(killed: Ran, tmp_path: Path) -> None:
    """Report and calibration read it, and transformers loads the model."""
    lines = [json.loads(line) for line in killed.run.profile.read_text().splitlines()]
    assert [line["updates"]["update"] for line in lines] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert all(
        line["updates"]["clip_fraction"][0] == 0 < max(line["updates"]["clip_fraction"]) for line in lines
    )
    assert killed.run.samples(3).is_file()
    assert len(killed.run.read_transcripts(3)) == 4
    summary = json.loads(killed.run.summary.read_text())
    assert summary["steps"] == 12
    for words in (
        ["report", str(killed.run.path), "--output", str(tmp_path / "page.html")],
        ["calibrate", str(killed.run.path)],
    ):
        done = subprocess.run([sys.executable, "-m", "ctpo", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    from ctpo.evaluation.model import load_model

    load_model(str(killed.run.model))


def test_asynchronous(environment: dict[str, str], tmp_path: Path) -> None:
    ran = run(environment, tmp_path, "rollout_batches=3", "trainer_mode=separate_async", "max_staleness=2")
    trained = ran.records[1:]
    assert [record["step"] for record in trained] == [4, 8, 12]
    assert max(record["staleness"] for record in trained) > 0
    assert all(0 <= record["staleness_max"] <= 2 for record in trained)
    assert max(record["log_ratio_std"] for record in trained) > 0.05
    assert all(record["clip_fraction"] < 1 for record in trained)
    assert "every ratio was 1" not in ran.printed


def test_an_anchor_that_follows_the_weights_is_noticed(environment: dict[str, str], tmp_path: Path) -> None:
    """verl's copy of the old weights is the same memory on a CPU. Refused by us, so it is asked of verl directly."""
    ran = run(
        environment, tmp_path, "rollout_batches=2", "trainer_mode=separate_async", "objective=grpo",
        "engine.algorithm.rollout_correction.bypass_mode=False",
    )  # fmt: skip
    assert max(abs(record["log_ratio_max"]) for record in ran.records[1:]) < 1e-5
    assert "every ratio was 1 in 4 updates" in ran.printed


def test_a_critic(environment: dict[str, str], tmp_path: Path) -> None:
    """verl's critic, sharded by FSDP2 over two processes as the policy is."""
    ran = run(
        environment, tmp_path, "rollout_batches=1", "objective=ppo", "advantages=gae", "critic.trunk=copy",
        "per_device_train_batch_size=16", "engine.trainer.n_gpus_per_node=2",
    )  # fmt: skip
    (record,) = ran.records[1:]
    assert record["log_ratio_std"] > 0.01
    assert 0 <= record["clip_fraction"] < 1
    assert record["critic_value_loss"] > 0
    assert record["critic_grad_norm"] > 0


def test_a_comparison_of_objectives_and_engines(environment: dict[str, str], tmp_path: Path) -> None:
    """One plan has arms on both engines; one of verl's has a KL penalty, and so a reference model."""
    keys = {**parse_overrides(SMALL), "rollout_batches": 1}
    plan = {
        "common": {name: value for name, value in keys.items() if name != "engine"},
        "objectives": {
            "ours": {"objective": "gspo"},
            "gspo": {"engine": "verl", "threads": 2},
            "grpo": {"engine": "verl", "threads": 2, "beta": 0.01},
        },
        "seeds": {"test": [0]},
    }
    path, scores = tmp_path / "c.yaml", tmp_path / "scores.csv"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    command = [sys.executable, "-m", "ctpo", "compare", str(path), "--cores", "2", "--scores", str(scores)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    outcome = json.loads((tmp_path / "c" / "results.json").read_text())
    assert {row["arm"]: row["n"] for row in outcome["objectives"]} == {"ours": 1, "gspo": 1, "grpo": 1}
    assert len(scores.read_text().splitlines()) == 4
    for arm, least in (("gspo", 0.001), ("grpo", 0.01)):  # gspo's ratio is a mean over the response
        folder = tmp_path / "c" / "runs" / "all" / arm / "untuned" / "seed-0"
        (record,) = RunDirectory(folder / "run").records()[1:]
        assert record["log_ratio_std"] > least
        assert 0 <= record["clip_fraction"] < 1
        assert ("kl_reference" in record) == (arm == "grpo")
        assert len((folder / "log.txt").read_text().splitlines()) < 50, "verl's own lines are in a file"
    assert record["kl_reference"] > 0
