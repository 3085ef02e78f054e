"""Whole runs: the files they leave, and that an interrupted run ends where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.errors import UserError
from ctpo.evaluation import blocks
from ctpo.runs.directory import RunDirectory
from ctpo.training.records.events import Silent
from ctpo.training.run.train import Outcome, train

Recipe = Callable[..., dict[str, Any]]
CLOCKED = {"seconds", "batch_s", "generation_s", "tool_s", "training_s", "tokens_per_s", "tool_executed"}


class InterruptAt(Silent):
    """Sends Ctrl-C in the middle of a rollout batch."""

    def __init__(self, batch: int, updates: int) -> None:
        self.moment = (batch, updates)

    def progressed(self, batch: int, updates: int) -> None:
        if (batch, updates) == self.moment:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Blocks of few held-out problems, so that evaluations before the last one end early here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "FIRST", 4)
        patch.setattr(blocks, "LEAST", 2)
        yield


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.model / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_recipe: Recipe) -> Outcome:
    """A finished run with a checkpoint at its end, started 500 seconds ago as its clock has it."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    return train(small_recipe(path, save_steps=8, transcripts=8), started=time.perf_counter() - 500)


@pytest.fixture
def copied(whole: Outcome, tmp_path: Path) -> RunDirectory:
    """A copy of it without its summary."""
    shutil.copytree(whole.run.path, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    run.summary.unlink()
    return run


def test_files_of_a_run(whole: Outcome) -> None:
    run = whole.run
    assert whole.finished
    records = run.records()
    assert [record["batch"] for record in records] == [0, 1, 2]
    assert [record["step"] for record in records] == [0, 4, 8]
    assert all("heldout_pass@1" in record for record in records)
    assert all(record["tool_calls"] > 0 and 0 <= record["clip_fraction"] <= 1 for record in records[1:])
    summary = json.loads(run.summary.read_text())
    assert summary == whole.summary
    assert (summary["objective"], summary["seed"], summary["steps"]) == ("ctpo", 3, 8)
    assert summary["before"]["pass@1"] == records[0]["heldout_pass@1"]
    assert summary["after"]["pass@1"] == records[-1]["heldout_pass@1"]
    assert summary["after"]["stderr"] >= 0
    assert summary["wall_clock_s"] > 0
    rows = [json.loads(line) for line in run.transcripts(2).read_text().splitlines()]
    assert len(rows) == 8
    called = next(row for row in rows if row["calls"])
    assert f"<py>{called['calls'][0]['program']}</py>{called['calls'][0]['output']}" in called["completion"]


def test_the_last_evaluation_alone_uses_all_problems(whole: Outcome) -> None:
    """Those before draw the first problems of the same order, and the gain is over what both have."""
    first, middle, last = whole.run.records()
    drawn = first["heldout_problems"]
    assert 4 <= drawn <= 8  # no more than there are transcripts
    assert middle["heldout_problems"] < 16 == last["heldout_problems"]
    rows = {batch: list(whole.run.read_transcripts(batch)) for batch in (0, 1, 2)}
    names = {batch: [row["id"] for row in each][:drawn] for batch, each in rows.items()}
    assert len(names[0]) == drawn
    assert names[0] == names[1] == names[2]
    before, after = (sum(row["correct"] for row in rows[batch][:drawn]) / drawn for batch in (0, 2))
    assert first["heldout_pass@1"] == before
    assert last["heldout_gain"] == after - before
    assert "heldout_gain" not in middle


def test_time_is_accounted_for(whole: Outcome) -> None:
    for record in whole.run.records()[1:]:
        parts = record["generation_s"] + record["tool_s"] + record["training_s"]
        assert parts == pytest.approx(record["batch_s"], abs=0.01)


@dataclass(frozen=True)
class Paused:
    """A run of one rollout batch that was interrupted within it and resumed."""

    path: Path
    before: list[dict[str, Any]]
    """Its records before it was resumed."""
    finished: Outcome
    seconds: tuple[float, float]
    """How long each of its parts took."""


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory, small_recipe: Recipe) -> Paused:
    """Its first part was started 500 seconds ago, and its second 100."""
    path, begun = tmp_path_factory.mktemp("paused") / "run", time.perf_counter()
    recipe = small_recipe(path, rollout_batches=1)
    stopped = train(recipe, listener=InterruptAt(1, 2), started=begun - 500)
    before, again = stopped.run.records(), time.perf_counter()
    finished = train({}, resume=path, started=again - 100)
    return Paused(path, before, finished, (again - begun, time.perf_counter() - again))


def test_the_time_of_a_run_counts_from_where_it_started(paused: Paused) -> None:
    """Imports and the first evaluation count; an interrupted run adds the times of its parts."""
    first, second = paused.seconds
    (evaluated,), last = paused.before, paused.finished.run.records()[-1]
    assert 500 < evaluated["seconds"] < 500 + first
    assert paused.finished.summary is not None
    assert 600 < last["seconds"] < paused.finished.summary["wall_clock_s"] < 600 + first + second
    assert last["batch_s"] < first + second


def test_saved_model_loads_and_gives_the_last_accuracy(whole: Outcome) -> None:
    from ctpo.evaluation.suite import Suite, run_suite
    from ctpo.tasks import get_task

    tasks = {"arithmetic": get_task("arithmetic")}
    figures, _ = run_suite(Suite(tasks=tasks, model=str(whole.run.model), limit=16, max_tokens=80))
    assert whole.summary is not None
    assert figures["results"]["arithmetic"]["pass@1"] == whole.summary["after"]["pass@1"]


def test_its_own_config_runs_it_again(whole: Outcome, tmp_path: Path) -> None:
    from ctpo.training.config.recipe import read_recipe

    again = train({**read_recipe(whole.run.config), "output_dir": str(tmp_path / "again")})
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(again.run).values(), weights(whole.run).values(), strict=True)
    )


@pytest.mark.parametrize("moment", [(1, 2), (2, 3)])
def test_interrupted_in_a_batch_and_resumed_it_ends_the_same(
    whole: Outcome, small_recipe: Recipe, tmp_path: Path, moment: tuple[int, int]
) -> None:
    path = tmp_path / "run"
    stopped = train(small_recipe(path), listener=InterruptAt(*moment))
    assert not stopped.finished
    assert not stopped.run.summary.exists()
    resumed = train({}, resume=path)
    assert resumed.finished
    for name, expected in weights(whole.run).items():
        assert torch.equal(weights(resumed.run)[name], expected)
    for got, expected in zip(resumed.run.records(), whole.run.records(), strict=True):
        assert {k: v for k, v in got.items() if k not in CLOCKED} == {
            k: v for k, v in expected.items() if k not in CLOCKED
        }


def test_a_finished_run_can_be_trained_further(whole: Outcome, paused: Paused, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(paused.path, path)
    assert json.loads((path / "summary.json").read_text())["steps"] == 4
    longer = train({"rollout_batches": 2}, resume=path)
    assert longer.summary is not None
    assert longer.summary["steps"] == 8
    assert RunDirectory(path).read_recipe()["rollout_batches"] == 2
    for name, expected in weights(whole.run).items():
        assert torch.equal(weights(longer.run)[name], expected)


def test_a_finished_run_has_nothing_to_resume(whole: Outcome) -> None:
    with pytest.raises(
        UserError, match=r"is complete .8 updates, and 8 were asked for.; to train it further"
    ):
        train({}, resume=whole.run.path)


def test_a_directory_with_a_run_is_not_overwritten(whole: Outcome, small_recipe: Recipe) -> None:
    before = whole.run.metrics.read_bytes()
    with pytest.raises(UserError, match="already holds a run; choose another, or continue it with"):
        train(small_recipe(whole.run.path))
    assert whole.run.metrics.read_bytes() == before


def test_resume_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        train({}, resume=tmp_path)


def test_too_few_problems(small_recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "few.jsonl"
    data.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    keys = small_recipe(tmp_path / "run", dataset=str(data))
    del keys["train_problems"]
    with pytest.raises(UserError, match="1 training problems do not fill one rollout batch of 8 prompts"):
        train(keys)
    assert not (tmp_path / "run").exists()


def test_a_run_that_lacks_only_its_ending_gets_it(whole: Outcome, copied: RunDirectory) -> None:
    """As after a kill between the last update and the summary."""
    (copied.model / "model.safetensors").unlink()
    summary = train({}, resume=copied.path).summary
    assert summary is not None
    assert summary["after"] == (whole.summary or {})["after"]
    expected = weights(whole.run)
    assert all(torch.equal(weights(copied)[name], expected[name]) for name in expected)


def test_a_run_without_a_checkpoint_starts_again(whole: Outcome, copied: RunDirectory) -> None:
    """It keeps the time of its first evaluation."""
    (checkpoint,) = copied.path.glob("checkpoint-*")
    shutil.rmtree(checkpoint)
    again = train({}, resume=copied.path)
    assert again.finished
    records, first = copied.records(), whole.run.records()[0]
    assert [record["batch"] for record in records] == [0, 1, 2]
    assert records[1]["seconds"] > records[0]["seconds"] == first["seconds"] > 500
    assert (again.summary or {})["wall_clock_s"] > 500


def test_clocks_go_on_after_an_interrupt(paused: Paused) -> None:
    record = paused.finished.run.records()[-1]
    assert record["training_s"] > 0
    assert record["batch_s"] > record["generation_s"] + record["tool_s"]
    assert record["seconds"] >= record["batch_s"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "seed=5 cannot change when .* is resumed .it is 3."),
        ({"objective": "grpo"}, "objective=grpo cannot change"),
        ({"num_generations": 8}, "num_generations=8 cannot change"),
        ({"rollout_batches": 1}, "is complete .8 updates, and 4 were asked for."),
    ],
)
def test_a_resumed_run_stays_the_same_run(whole: Outcome, change: dict[str, Any], message: str) -> None:
    before = whole.run.config.read_bytes()
    with pytest.raises(UserError, match=message):
        train(change, resume=whole.run.path)
    assert whole.run.config.read_bytes() == before


@pytest.mark.parametrize("damage", [b"garbage\n", b"5\n", b"\xff\n"])
def test_damaged_metrics_are_not_thrown_away(
    whole: Outcome, small_recipe: Recipe, tmp_path: Path, damage: bytes
) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_bytes(damage + whole.run.metrics.read_bytes())
    before = run.metrics.read_bytes()
    with pytest.raises(UserError, match="line 1 is damaged"):
        run.rewind(0, 4)
    assert run.metrics.read_bytes() == before
    run.metrics.write_bytes(whole.run.metrics.read_bytes() + b'{"batch": 3, "st')
    assert len(run.records()) == 3


def test_other_peoples_files_are_safe(small_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(UserError, match="is not empty; choose a directory of the run's own"):
        train(small_recipe(tmp_path))
    assert (tmp_path / "checkpoint-1").is_dir()


def test_a_model_with_weights_missing_is_refused(small_recipe: Recipe, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from ctpo.tasks.arithmetic import model_path

    shutil.copytree(model_path(), tmp_path / "half")
    kept = load_file(model_path() / "model.safetensors")
    kept.pop("model.norm.weight")
    save_file(kept, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights, for example model\.norm\.weight"):
        train(small_recipe(tmp_path / "run", model=str(tmp_path / "half")))
    assert not (tmp_path / "run").exists()
