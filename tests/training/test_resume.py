"""A run killed at any moment and resumed ends with the bits of an undisturbed one, and bad checkpoints are refused."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from launcher import finish, launch

from ctpo.cli.main import main
from ctpo.runs.checkpoints import STAGING, Unusable, all_checkpoints, examine, last_good, step_of

# Two rollout batches an epoch and two epochs, so that data order and a threshold's average have a past to forget.
SMALL = (
    "rollout_batches=4 generation_batch_size=16 num_generations=4 per_device_train_batch_size=8 train_problems=8 "
    "eval_problems=4 eval_every=2 transcripts=2 max_completion_length=80 save_steps=1 save_total_limit=3 "
    "learning_rate=1e-3 objective=prefix-quantile objective_kwargs.ema=0.5"
).split()
CLOCKED = {"seconds", "batch_s", "generation_s", "tool_s", "training_s", "tokens_per_s", "tool_executed"}


def result_of(run: Path) -> tuple[bytes, list[dict[str, Any]], dict[str, str]]:
    """A run's weights, its records without times, and its profiles and samples."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    plain = [{name: value for name, value in row.items() if name not in CLOCKED} for row in records]
    files = [run / "profile.jsonl", *sorted(run.glob("samples/*.jsonl"))]
    diagnostics = {str(path.relative_to(run)): path.read_text() for path in files}
    return (run / "model" / "model.safetensors").read_bytes(), plain, diagnostics


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    path = tmp_path_factory.mktemp("resume") / "whole"
    assert finish(launch(["train", *SMALL, f"output_dir={path}"], path.with_suffix(".log"))) == 0
    _, records, diagnostics = result_of(path)
    assert [row["batch"] for row in records] == [0, 1, 2, 3, 4]
    assert list(diagnostics) == ["profile.jsonl", "samples/batch-0002.jsonl", "samples/batch-0004.jsonl"]
    assert [json.loads(line)["batch"] for line in diagnostics["profile.jsonl"].splitlines()] == [1, 2, 3, 4]
    return path


@pytest.fixture
def unfinished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it without its ending."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


def start(path: Path) -> BaseProcess:
    """Start the run, or resume it if it has started before."""
    begun = (path / "config.yaml").is_file()
    words = ["--resume", str(path)] if begun else [*SMALL, f"output_dir={path}"]
    return launch(["train", *words], path.with_suffix(".log"))


def kill_when(process: BaseProcess, due: Callable[[], bool]) -> bool:
    """Kill the process once it is due; False if it ended first."""
    while process.is_alive():
        if due():
            process.kill()
            process.join()
            return True
        time.sleep(0.0005)
    assert process.exitcode == 0
    return False


def reached(path: Path) -> int:
    return max((step_of(checkpoint) for checkpoint in all_checkpoints(path)), default=0)


def test_killed_again_and_again_it_ends_the_same(whole: Path, tmp_path: Path) -> None:
    """Three kills spread over the run, one of them while a checkpoint is being written (about 30 ms) or soon after."""
    path, draw, kills = tmp_path / "run", random.Random(), 0
    for step, saving in ((0, False), (3, False), (4, True)):
        wait = draw.uniform(0, 0.02 if saving else 0.5)
        since: list[float] = []

        def due(
            step: int = step, saving: bool = saving, wait: float = wait, since: list[float] = since
        ) -> bool:
            if not since and reached(path) >= step and (not saving or (path / STAGING).exists()):
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] > wait

        kills += kill_when(start(path), due)
    if not (path / "summary.json").exists():
        assert finish(start(path)) == 0, path.with_suffix(".log").read_text()
    assert kills >= 2
    assert result_of(path) == result_of(whole)


def test_a_run_with_partly_right_answers_goes_on(tmp_path: Path) -> None:
    """Its record of the evaluation holds a flag among the figures."""
    path = tmp_path / "run"
    words = (
        "task=worksheet?problems=3 model=embedded-worksheet rollout_batches=1 generation_batch_size=8 "
        "num_generations=4 per_device_train_batch_size=8 train_problems=8 eval_problems=8 "
        "max_completion_length=192 save_steps=1"
    ).split()
    assert finish(launch(["train", *words, f"output_dir={path}"], path.with_suffix(".log"))) == 0
    assert json.loads((path / "metrics.jsonl").read_text().splitlines()[0])["heldout_graded"] is True
    more = ["train", "--resume", str(path), "rollout_batches=2"]
    assert finish(launch(more, path.with_suffix(".log"))) == 0, path.with_suffix(".log").read_text()


def damage(path: Path, how: str) -> None:
    if how == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "garble":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("model.safetensors", "truncate", "model.safetensors is truncated"),
        ("optimizer.pt", "truncate", "optimizer.pt is truncated"),
        ("optimizer.pt", "garble", "optimizer.pt is damaged (its content has changed"),
        ("trainer_state.json", "remove", "trainer_state.json is missing"),
        ("trainer_state.json", "garble", "trainer_state.json is damaged"),
        ("rollout_buffer_0.pt", "remove", "rollout_buffer_0.pt is missing"),
        ("complete.json", "remove", "it is incomplete (it has no complete.json)"),
        ("complete.json", "truncate", "complete.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_last_good_one_named(
    unfinished: Path, capsys: pytest.CaptureFixture[str], name: str, how: str, reason: str
) -> None:
    newest = unfinished / "checkpoint-8"
    damage(newest / name, how)
    assert main(["train", "--resume", str(newest)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    assert reason in message
    assert f"the last good one is {unfinished / 'checkpoint-7'}" in message
    assert last_good(unfinished) == unfinished / "checkpoint-7"


def test_unasked_it_takes_the_last_good_one_and_says_so(whole: Path, unfinished: Path) -> None:
    damage(unfinished / "checkpoint-8" / "model.safetensors", "truncate")
    damage(unfinished / "checkpoint-7" / "optimizer.pt", "garble")
    assert finish(start(unfinished)) == 0
    message = unfinished.with_suffix(".log").read_text()
    assert "checkpoint-8 is refused: model.safetensors is truncated" in message
    assert "checkpoint-7 is refused: optimizer.pt is damaged" in message
    assert "continuing from checkpoint-6" in message
    assert (unfinished / "set-aside" / "checkpoint-7").is_dir()
    assert result_of(unfinished) == result_of(whole)


def test_no_good_one_left(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in all_checkpoints(unfinished):
        damage(checkpoint / "optimizer.pt", "remove")
    assert main(["train", "--resume", str(unfinished)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no checkpoint of" in message
    assert "checkpoint-6: optimizer.pt is missing" in message


def test_another_runs_checkpoint_is_refused(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sealed = unfinished / "checkpoint-8" / "complete.json"
    content = json.loads(sealed.read_text())
    content["identity"]["recipe"]["seed"] = 5
    sealed.write_text(json.dumps(content))
    assert main(["train", "--resume", str(sealed.parent)]) == 2
    assert "it is another run's (seed is 5 there, 0 here)" in capsys.readouterr().err


def test_another_models_checkpoint_is_refused(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe is the same, but the directory that it names holds another model now."""
    sealed = unfinished / "checkpoint-8" / "complete.json"
    content = json.loads(sealed.read_text())
    content["identity"]["model"] = {"parameters": 7, "shapes": "0" * 64}
    sealed.write_text(json.dumps(content))
    for other in ("checkpoint-6", "checkpoint-7"):
        shutil.rmtree(unfinished / other)
    assert main(["train", "--resume", str(unfinished), "rollout_batches=5"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "it is another model's (7 parameters of shapes 00000000 there, 61248 parameters" in message


def test_other_processes_checkpoint_is_refused(unfinished: Path) -> None:
    with pytest.raises(Unusable, match="saved by 1 process and this is 2; resume with one process"):
        examine(unfinished / "checkpoint-8", {"world_size": 2})


def test_a_record_lost_is_noticed(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = unfinished / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:2] + lines[3:]))
    assert main(["train", "--resume", str(unfinished)]) == 2
    assert "metrics.jsonl lacks the record of update 4" in capsys.readouterr().err


def test_a_full_disk_leaves_the_checkpoint_before(whole: Path, unfinished: Path) -> None:
    """A limit on the size of a file stands in for a full disk: the optimizer's file no longer fits."""
    for newer in ("checkpoint-7", "checkpoint-8"):
        shutil.rmtree(unfinished / newer)
    shutil.rmtree(unfinished / "model")
    log = unfinished.with_suffix(".log")
    process = launch(["train", "--resume", str(unfinished)], log, largest_file=400_000)
    assert finish(process) == 2
    line = log.read_text().splitlines()[-1]
    assert line.startswith(f"ctpo: checkpoint-7 could not be written to {unfinished} (a file was cut short, ")
    assert (
        f"checkpoint-6 is intact: free some space and continue with `ctpo train --resume {unfinished}`"
        in line
    )
    assert "Traceback" not in log.read_text()
    examine(unfinished / "checkpoint-6", {})
    assert all_checkpoints(unfinished) == [unfinished / "checkpoint-6"]
    assert not (unfinished / STAGING).exists()
    assert finish(start(unfinished)) == 0
    assert result_of(unfinished) == result_of(whole)
