"""Trainings that a Python script starts: their records, and what the commands make of them."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctpo import CTPOConfig
from ctpo.cli.main import main
from ctpo.errors import UserError
from ctpo.runs.directory import RunDirectory
from ctpo.runs.script import RESUME, asked_for
from ctpo.training.records.card import model_card

CLOCKED = {"seconds", "batch_s", "generation_s", "tool_s", "training_s", "tokens_per_s"}
SCRIPT = """
import os, sys
import torch
torch.set_num_threads(1)
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from ctpo import CTPOConfig, CTPOTrainer
from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import model_path

class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == int(sys.argv[2]) and "CTPO_RESUME" not in os.environ:
            raise KeyboardInterrupt

def digits(completions, **_):
    return [sum(map(ord, each)) % 13 / 13 for each in completions]

rows = Dataset.from_list([{"prompt": each.prompt} for each in get_task("arithmetic").problems("train", 16, 0)])
os.chdir("/")
trainer = CTPOTrainer(
    model=str(model_path()), reward_funcs=digits, train_dataset=rows, eval_dataset=rows.select(range(2)),
    args=CTPOConfig(
        sys.argv[1], objective="grpo", generation_batch_size=8, num_generations=4, per_device_train_batch_size=4,
        max_completion_length=16, max_steps=6, learning_rate=1e-3, temperature=2.0, logging_steps=5,
        lr_scheduler_type="constant",
        save_steps=3, eval_strategy="steps", eval_steps=3,
        load_best_model_at_end=True, metric_for_best_model="reward", greater_is_better=True,
        eval_on_start=True, use_cpu=True, report_to="none", seed=3, hub_token="hf_secret", disable_tqdm=True,
    ),
    processing_class=AutoTokenizer.from_pretrained(model_path(), padding_side="left"), callbacks=[Stop()],
)
trainer.train()
"""


def records(path: Path) -> list[dict[str, Any]]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(each).items() if key not in CLOCKED} for each in lines]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scripts") / "train.py"
    path.write_text(SCRIPT)
    return path


def run_script(script: Path, output: Path, stop: int = 0) -> None:
    """Run it in this process, as `python train.py OUTPUT STOP` would; its own directory is the working one."""
    words, here = [str(script), str(output), str(stop)], Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "orig_argv", ["python", *words])
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            os.chdir(here)


@pytest.fixture(scope="module")
def whole(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "out"
    run_script(script, path)
    return path


def test_one_record_per_rollout_batch_whenever_the_script_logs_and_evaluates(whole: Path) -> None:
    lines = records(whole)
    assert [(each["batch"], each["step"]) for each in lines] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    # Evaluated at the start, in the middle of the second rollout batch, and at the end of the third.
    assert [each["batch"] for each in lines if "heldout_reward" in each] == [0, 2, 3]
    logged = json.loads((whole / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    for record, step in ((lines[0], 0), (lines[2], 3), (lines[3], 6)):
        (row,) = (each for each in logged if each["step"] == step and "eval_reward" in each)
        assert record["heldout_reward"] == row["eval_reward"]
    rewards = [each["reward"] for each in lines[1:]]
    (row,) = (each for each in logged if each["step"] == 5 and "reward" in each)
    assert row["reward"] == pytest.approx(sum(rewards) / 3)  # by step 5 three rollout batches were sampled
    assert all(each["tokens"] == 8 * each["response_tokens"] for each in lines[1:])
    profiles = (whole / "profile.jsonl").read_text().splitlines()
    assert [json.loads(each)["step"] for each in profiles] == [2, 4, 6]
    sampled = {each.name for each in (whole / "samples").iterdir()}
    assert "batch-0001.jsonl" in sampled <= {"batch-0001.jsonl", "batch-0002.jsonl"}  # not after the third


def test_a_batch_in_which_training_ends_has_a_record_and_a_longer_training_the_record_of_it_all(
    whole: Path, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, path = tmp_path / "short.py", tmp_path / "out"
    short.write_text(SCRIPT.replace("max_steps=6", "max_steps=3"))
    run_script(short, path)
    lines = records(path)
    assert [(each["batch"], each["step"], each.get("updates")) for each in lines] == [
        *((0, 0, None), (1, 2, None), (2, 3, 1))
    ]
    assert lines[2]["grad_norm"] > 0
    assert "heldout_reward" in lines[2]
    profiles = (path / "profile.jsonl").read_text().splitlines()
    assert [json.loads(each)["step"] for each in profiles] == [2, 3]
    monkeypatch.setenv(RESUME, str(path))
    run_script(script, path)
    assert records(path) == records(whole)
    assert (path / "profile.jsonl").read_text() == (whole / "profile.jsonl").read_text()
    first, second = (json.loads(each) for each in (path / "metrics.jsonl").read_text().splitlines()[1:3])
    assert second["batch_s"] > second["training_s"] > 0
    assert second["seconds"] > first["seconds"]


def test_an_early_end_by_a_callback_has_a_record_too(tmp_path: Path) -> None:
    early = tmp_path / "early.py"
    early.write_text(SCRIPT.replace("raise KeyboardInterrupt", "control.should_training_stop = True"))
    run_script(early, tmp_path / "out", stop=3)
    assert [(each["step"], each.get("updates")) for each in records(tmp_path / "out")] == [
        *((0, None), (2, None), (3, 1))
    ]


def test_settings_and_summary(whole: Path, script: Path) -> None:
    run = RunDirectory(whole)
    recipe = run.read_recipe()
    assert (recipe["objective"], recipe["seed"], recipe["rewards"]) == ("grpo", 3, ["digits"])
    assert recipe["objective_kwargs"]["ratio_low"] == 0.2
    assert recipe["train_data"]["rows"] == 16
    assert recipe["script"]["command"] == [str(script), str(whole), "0"]
    assert recipe["script"]["directory"] == str(Path.cwd())  # and not where the script went
    assert "hf_secret" not in run.config.read_text()
    assert "push_to_hub_token" not in recipe  # which the script does not set
    summary = json.loads(run.summary.read_text())
    assert (summary["steps"], summary["rollout_batches"]) == (6, 3)
    assert summary["before"]["reward"] == records(whole)[0]["heldout_reward"]
    assert summary["after"]["reward"] == records(whole)[3]["heldout_reward"]
    timed = [json.loads(each) for each in run.metrics.read_text().splitlines()][1:]
    assert all(each["generation_s"] > 0 for each in timed)
    state = json.loads((whole / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(
        whole / f"checkpoint-{state['best_global_step']}"
    )  # not in .saving/


def test_the_model_card_says_what_how_and_with_what_result(whole: Path, script: Path) -> None:
    card = (whole / "README.md").read_text()
    lines = records(whole)
    assert "max(−r_t A" in card or "PPO's loss of a token" in card  # the objective's own words
    assert "arXiv 2402.03300" in card
    assert "8 responses, 4 to each of 2 prompts" in card
    assert f"python {script} {whole} 0" in card
    first, last = (each["heldout_reward"] for each in (lines[0], lines[3]))
    assert f"| held-out reward | {first:.4g} (batch 0) | {last:.4g} (batch 3) |" in card


def test_names_in_a_model_card_are_no_markup() -> None:
    name = "</code><script>`**x** | ![a](b)\n# Head\n```\n"
    recipe = {"model": name, "rewards": [name], "script": {"command": [name], "directory": name}}
    args = CTPOConfig("out", use_cpu=True, steps_per_generation=2)
    card = model_card(args, recipe, [], {"ctpo": name}, name=name, parameters=1, tags=[name])
    _, metadata, text = card.split("---\n", 2)
    assert set(yaml.safe_load(metadata)) == {"library_name", "model_name", "tags"}
    outside = re.sub(r"```text\n.*?\n```", "", text, flags=re.DOTALL)
    outside = re.sub(r"`[^`\n]*`", "", outside)
    assert "script>" not in outside
    assert "![" not in outside
    heads = [line for line in outside.splitlines() if line.startswith("#")]
    assert [head.split(" ")[1] for head in heads] == ["Model", "What", "How", "Result", "How"]


def test_the_commands_take_it(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(whole), "--output", str(tmp_path / "page.html")]) == 0
    assert "missing" not in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "Training reward" in page
    assert "Held-out reward" in page
    assert main(["calibrate", str(whole)]) in (0, 2)  # three tiny batches may hold no drift to fit
    assert "damaged" not in capsys.readouterr().err
    plan, based = tmp_path / "plan.yaml", tmp_path / "based.yaml"
    plan.write_text("objectives: {ctpo: {}, grpo: {}}\nregimes: {plain: {}}\nseeds: {test: [0, 1]}\n")
    based.write_text(f"recipe: {whole / 'config.yaml'}\n{plan.read_text()}")
    for words, message in (
        (["train", "--resume", str(whole)], "names the script"),
        (["train", "--resume", str(whole), "seed=1", "--trust"], "seed=1: "),
        (["train", str(whole / "config.yaml")], "records the training of a Python script"),
        (["compare", str(whole)], "is a directory; give a comparison file. `ctpo report"),
        (
            ["compare", str(plan), "--output", str(whole)],
            "holds a run; choose a directory of the comparison's own",
        ),
        (["compare", str(based)], "records the training of a Python script"),
        (["eval", str(whole)], "name what to evaluate on with --task"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_interrupted_and_resumed_from_the_command_line_it_ends_the_same(
    whole: Path, script: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_script(script, path, stop=5)
    assert [each["step"] for each in records(path)] == [0, 2, 4]
    assert not (path / "summary.json").exists()
    words = [sys.executable, "-m", "ctpo", "train", "--resume", str(path), "--trust"]
    subprocess.run(words, check=True, capture_output=True, cwd=tmp_path)
    assert records(path) == records(whole)
    assert (path / "profile.jsonl").read_text() == (whole / "profile.jsonl").read_text()
    weights = ("checkpoint-6", "model.safetensors")
    assert path.joinpath(*weights).read_bytes() == whole.joinpath(*weights).read_bytes()
    assert (path / "summary.json").exists()


def test_a_complete_training_is_not_resumed(
    whole: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = records(whole)
    monkeypatch.setenv(RESUME, str(whole))
    with pytest.raises(UserError, match=r"checkpoint-6 is the end of its training \(max_steps=6\)"):
        run_script(script, whole)
    assert records(whole) == before


def test_what_a_new_training_finds_is_set_aside(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for number in (1, 2):
        run.open({"seed": number}, {})
        run.append({"batch": 0, "step": 0})
        (tmp_path / "checkpoint-4").mkdir()
        assert run.set_aside() == tmp_path / "set-aside" / f"run-{number}"
        assert not run.holds_a_run
        assert not (tmp_path / "checkpoint-4").exists()
    assert RunDirectory(tmp_path / "set-aside" / "run-1").read_recipe() == {"seed": 1}


def test_a_config_of_the_users_own_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("learning_rate: 1e-5\n")
    with pytest.raises(UserError, match=r"config\.yaml that no run wrote.*records=False"):
        RunDirectory(tmp_path).set_aside()
    assert [each.name for each in tmp_path.iterdir()] == ["config.yaml"]


def test_the_environment_names_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESUME, str(tmp_path / "out" / "checkpoint-3"))
    assert asked_for(tmp_path / "out") == tmp_path / "out" / "checkpoint-3"
    assert asked_for(tmp_path / "other") is None


def test_records_begin_where_another_runs_checkpoint_ended(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (6, 8, 10):
        run.append({"batch": step // 2, "step": step})
    with pytest.raises(UserError, match="lacks the record of update 0"):
        run.rewind(9, 2)
    assert [each["step"] for each in run.rewind(9, 2, from_start=False)] == [6, 8]
