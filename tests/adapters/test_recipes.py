"""The paper's recipes: their keys fit what will read them, and their settings are the published ones."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctpo.adapters.verl_recipe import check, read_overrides
from ctpo.errors import UserError

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = [RECIPES / f"paper-qwen3-{size}" for size in ("4b", "14b")]
needs_verl = pytest.mark.skipif(
    importlib.util.find_spec("verl") is None,
    reason="verl is not installed (pip install -r tests/adapters/requirements-verl.txt)",
)


def settings(folder: Path) -> dict[str, str]:
    pairs = (each.lstrip("+").partition("=") for each in read_overrides(folder))
    return {key: value for key, _, value in pairs}


@pytest.mark.parametrize("folder", PAPER, ids=lambda folder: folder.name)
def test_published_settings(folder: Path) -> None:
    given = settings(folder)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    published = {
        "data.train_batch_size": "512", "data.max_prompt_length": "16000", "data.max_response_length": "8000",
        f"{actor}.ppo_mini_batch_size": "32", f"{actor}.optim.lr": "1e-6", f"{rollout}.n": "8",
        f"{rollout}.multi_turn.max_assistant_turns": "5", f"{rollout}.val_kwargs.n": "32",
        f"{rollout}.val_kwargs.temperature": "0.7", "trainer.total_training_steps": "305", "trainer.test_freq": "20",
        "algorithm.rollout_correction.rollout_is": "sequence",
        "algorithm.rollout_correction.rollout_is_threshold": "5.0",
    }  # fmt: skip
    assert {key: given[key] for key in published} == published
    knobs = yaml.safe_load(given[f"{actor}.policy_loss.knobs"])
    assert knobs == {"log_low": 0.025, "log_high": 0.05, "log_dual": 0.05, "power": 0.5}


def test_the_two_sizes_differ_in_size_only() -> None:
    small, large = (settings(folder) for folder in PAPER)
    assert small.keys() == large.keys()
    different = {key.removeprefix("actor_rollout_ref.") for key in small if small[key] != large[key]}
    assert different == {
        "model.path", "actor.ppo_max_token_len_per_gpu", "actor.fsdp_config.param_offload",
        "actor.fsdp_config.optimizer_offload", "rollout.tensor_model_parallel_size", "trainer.experiment_name",
    }  # fmt: skip


@pytest.mark.parametrize("folder", PAPER, ids=lambda folder: folder.name)
def test_our_trainers_recipe(folder: Path) -> None:
    """Every key is known and of its type, on a machine without vLLM and without a GPU."""
    from ctpo.training.config import settings as reader

    keys = yaml.safe_load((folder / "train.yaml").read_text())
    here: dict[str, Any] = {**keys, "bf16": False}
    assert here.pop("use_vllm") is True
    recipe, config = reader.build(here)
    assert recipe.rollout_batches == 305
    assert config.updates_per_rollout_batch == 16
    assert config.steps_per_generation * 8 == 512 * 8  # eight processes, one response each
    launch = yaml.safe_load((folder / "accelerate.yaml").read_text())
    assert launch["num_processes"] == 8


def test_the_papers_table_is_measured_without_thinking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one command gives `ctpo eval` words that it takes, and the arguments of the chat template among them."""
    from ctpo.cli import eval as command

    said = tmp_path / "ctpo"
    said.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    said.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for folder in PAPER:
        script = [str(folder / "evaluate.sh"), "MODEL", "out", "--endpoint", "http://localhost:8000/v1"]
        words = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        args = parser.parse_args(words[1:])
        assert words[0] == "eval"
        assert (args.samples, args.temperature, args.task) == (
            32,
            0.7,
            ["aime25", "aime26", "brumo25", "hmmt25"],
        )
        assert json.loads(args.chat_template_kwargs) == {"enable_thinking": False}


ONE_GPU = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen2.5-0.5B-Instruct")


def of_one_gpu(model: str, micro: int) -> dict[str, Any]:
    """The recipe of one GPU as verl's keys, with this many responses in a forward pass."""
    from ctpo.engines.verl.translation import Site, translate
    from ctpo.training.config import settings as reader

    keys = yaml.safe_load((RECIPES / "gsm8k-qwen" / "train.yaml").read_text())
    keys |= {"model": model, "bf16": False, "output_dir": "run"}
    keys |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 64 // micro}
    assert keys.pop("use_vllm") is True
    _, config = reader.build(keys)
    assert config.updates_per_rollout_batch == 16
    place = Path("there")
    site = Site(
        model=model, train_file=place, test_file=place, agent_file=place, checkpoints=place, train_problems=7473,
        test_problems=1319, prompt_tokens=400, accelerator=True,
    )  # fmt: skip
    return translate(*reader.check(keys), site, None)


@pytest.mark.parametrize("micro", [64, 16])
@pytest.mark.parametrize("model", ONE_GPU)
def test_the_recipe_of_one_gpu_is_read_here_and_by_verl(model: str, micro: int) -> None:
    translated = of_one_gpu(model, micro)
    assert translated["data.train_batch_size"] * translated["actor_rollout_ref.rollout.n"] == 1024
    assert translated["actor_rollout_ref.rollout.name"] == "vllm"
    assert translated["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"] == micro


@needs_verl
@pytest.mark.parametrize("model", ONE_GPU)
def test_verl_takes_the_recipe_of_one_gpu(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctpo.engines.verl.configuration import configuration
    from ctpo.engines.verl.site import environment

    for name, value in environment(accelerator=True).items():
        monkeypatch.setenv(name, value)
    config = configuration(of_one_gpu(model, 16))
    assert config.actor_rollout_ref.actor.policy_loss.preset == "ctpo"
    assert config.actor_rollout_ref.rollout.name == "vllm"


@needs_verl
@pytest.mark.parametrize("folder", PAPER, ids=lambda folder: folder.name)
def test_dry_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTPO_RECIPE", str(folder))
    config = check(folder)
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "ctpo"


@needs_verl
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("actor_rollout_ref.actor.no_such_key=1", "no_such_key"),
        ("actor_rollout_ref.actor.policy_loss.knobs={hihg: 0.1}", "hihg"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=cpto", "cpto"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=512", "every ratio stays 1"),
        (
            "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
            "no agent loop called 'tool_agent'",
        ),
    ],
)
def test_dry_run_finds_mistakes(extra: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTPO_RECIPE", str(PAPER[0]))
    with pytest.raises(Exception, match=message):
        check(PAPER[0], [extra])


def test_a_key_set_twice(tmp_path: Path) -> None:
    (tmp_path / "verl.overrides").write_text("a.b=1\n# a.b=2\n+a.b=3\n")
    with pytest.raises(UserError, match=r"a\.b is set 2 times"):
        read_overrides(tmp_path)


def test_data_and_judge(tmp_path: Path) -> None:
    """The columns verl's dataset reads, from problems in files, and the judge as verl calls it."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("math_verify")
    from ctpo.adapters.verl_data import compute_score, write

    problems = tmp_path / "problems"
    problems.mkdir()
    for split in ("train", "test"):
        (problems / f"{split}.jsonl").write_text(
            '{"problem": "What is 1/2 + 1/4?", "answer": "\\\\frac{3}{4}"}\n'
        )
    paths = write(tmp_path / "out", [f"deepscaler@{problems}"], [f"aime25@{problems}"])
    for path in paths:
        (row,) = parquet.read_table(path).to_pylist()
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        assert (row["agent_name"], json.loads(row["extra_info"]["problem"])["answer"]) == (
            "ctpo",
            "\\frac{3}{4}",
        )
        assert row["extra_info"]["heldout"] == (path.stem == "competitions")
        truth = row["reward_model"]["ground_truth"]
        assert compute_score(row["data_source"], "so \\boxed{0.75}", truth, {})["score"] == 1.0
        assert compute_score(row["data_source"], "so \\boxed{0.5}", truth, {})["score"] == 0.0
