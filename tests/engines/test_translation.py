"""A recipe as verl's configuration, without verl."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from ctpo.engines.verl.accounted import REASONS, TRANSLATED, WITHOUT_EFFECT
from ctpo.engines.verl.site import Site
from ctpo.engines.verl.translation import translate
from ctpo.errors import UserError
from ctpo.objectives import preset, preset_names
from ctpo.training.config.recipe import Recipe, embedded_recipe, read_recipe
from ctpo.training.config.settings import check
from ctpo.training.config.sources import trainer_fields

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
SITE = Site(
    model="there/model",
    train_file=Path("train.parquet"),
    test_file=Path("test.parquet"),
    agent_file=Path("agent.yaml"),
    checkpoints=Path("run/verl"),
    train_problems=2048,
    test_problems=1024,
    prompt_tokens=20,
    accelerator=False,
)


def translated(site: Site = SITE, overrides: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return translate(*check({**embedded_recipe(), **keys}), site, overrides)


def test_the_embedded_recipe() -> None:
    keys = translated()
    expected = {
        "data.train_batch_size": 64,  # 512 responses in groups of 8
        f"{ACTOR}.ppo_mini_batch_size": 4,  # 32 responses
        f"{ROLLOUT}.n": 8,
        "data.max_response_length": 96,
        "trainer.total_training_steps": 16,
        "trainer.save_freq": 4,  # 64 updates of 16 a batch
        "trainer.test_freq": 4,
        "algorithm.adv_estimator": "grpo",
        "algorithm.rollout_correction.bypass_mode": True,  # anchor: rollout
        "algorithm.rollout_correction.rollout_is": None,
        f"+{ACTOR}.policy_loss.preset": "ctpo",
        f"+{ACTOR}.policy_loss.knobs": {},
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ACTOR}.optim.lr": 3e-4,
        f"+{ACTOR}.optim.schedule": "linear",
        f"+{ACTOR}.optim.updates": 16,
        "trainer.resume_mode": "disable",
        "critic.enable": False,
        f"{ROLLOUT}.name": "ctpo_cpu",
        "trainer.device": "cpu",
    }
    assert {name: keys[name] for name in expected} == expected


def test_sizes_mean_what_they_mean_under_torchrun() -> None:
    whole = dataclasses.replace(SITE, processes=2, accelerator=True)
    keys = translated(whole, per_device_train_batch_size=16)
    assert (keys["data.train_batch_size"], keys[f"{ACTOR}.ppo_mini_batch_size"]) == (64, 4)
    assert keys[f"{ACTOR}.ppo_micro_batch_size_per_gpu"] == 16
    assert keys["trainer.n_gpus_per_node"] == 2


def test_the_paper_recipe_is_the_published_one() -> None:
    """The same figures stand in the recipe for verl that was written by hand."""
    root = Path(__file__).parents[2] / "recipes" / "paper-qwen3-4b"
    keys = read_recipe(root / "train.yaml")
    for name in ("use_vllm", "vllm_mode"):  # vLLM is not installed here
        keys.pop(name)
    ours = translate(*check(keys), dataclasses.replace(SITE, processes=8, accelerator=True))
    lines = (root / "verl.overrides").read_text(encoding="utf-8").splitlines()
    theirs = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    compared = (
        "data.train_batch_size",
        "data.max_prompt_length",
        "data.max_response_length",
        "algorithm.adv_estimator",
        f"{ACTOR}.policy_loss.loss_mode",
        f"+{ACTOR}.policy_loss.preset",
        f"{ACTOR}.loss_agg_mode",
        f"{ACTOR}.ppo_mini_batch_size",
        f"{ACTOR}.ppo_epochs",
        f"{ROLLOUT}.n",
        "trainer.total_training_steps",
        "trainer.n_gpus_per_node",
        "trainer.save_freq",
        "algorithm.rollout_correction.rollout_is",
        "algorithm.rollout_correction.rollout_is_threshold",
        "algorithm.rollout_correction.bypass_mode",
    )
    assert {name: str(ours[name]) for name in compared} == {name: theirs[name] for name in compared}
    knobs = f"+{ACTOR}.policy_loss.knobs"
    assert ours[knobs] == {"log_low": 0.025, "log_high": 0.05, "log_dual": 0.05, "power": 0.5}
    assert float(theirs[f"{ACTOR}.optim.lr"]) == ours[f"{ACTOR}.optim.lr"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_keeps_its_reduction(name: str) -> None:
    """verl reduces. So its setting must be what the objective itself would have done."""
    keys = translated(objective=name)
    reduction = preset(name).reduction
    assert keys[f"{ACTOR}.loss_agg_mode"] == reduction.name
    factor = keys[f"{ACTOR}.loss_scale_factor"]
    assert factor == (reduction.norm_length if reduction.name == "seq-mean-token-sum-norm" else None)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"curriculum": {"easy": 0.5, "normal": 0.5}}, "draws its own prompts"),
        ({"behaviour_lag": 2}, "trainer_mode=separate_async"),
        ({"use_peft": True}, "lora_rank"),
        ({"denominators": "rollout-batch"}, "tokens and responses of the minibatch"),
        ({"dataloader_drop_last": True}, "a part of TRL's trainer"),
        ({"lr_scheduler_type": "polynomial"}, "constant, constant_with_warmup, linear, cosine"),
        ({"optim": "sgd"}, "use adamw_torch"),
        ({"advantages": "maxrl"}, "use one of trl, rloo"),
        ({"scale_rewards": "batch"}, "use group or none"),
        ({"anchor": "old", "rollout_correction": "icepop"}, "not translated"),
        ({"anchor": "rollout", "rollout_correction": "geo-mask"}, "corrects nothing"),
        (
            {"anchor": "old", "rollout_correction_kwargs": {"veto": 1e-4}, "rollout_correction": "tis"},
            "only cap",
        ),
        ({"per_device_train_batch_size": 4}, "whole groups of num_generations=8"),
        ({"warmup_steps": 0.1}, "give a number of updates"),
        ({"advantages": "gae"}, r"set critic\.trunk=copy"),
        ({"advantages": "gae", "critic": {"trunk": "copy", "trace": 0.9}}, r"set critic\.value_trace=0\.9"),
        ({"advantages": "gae", "critic": {"replay": 2}}, r"critic\.replay=2 cannot run"),
        ({"rollout_batches": None, "max_steps": 17}, "use 16"),
        ({"bf16": True, "use_cpu": False}, "needs an accelerator"),
        ({"objective_kwargs": {"reduction": "sum"}}, "use one of token-mean"),
    ],
)
def test_a_key_without_a_counterpart_is_refused_with_the_reason(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        translated(**keys)
    assert "\n" not in str(refusal.value)


def test_defaults_are_never_refused() -> None:
    defaults = {each.name: each.default for each in dataclasses.fields(Recipe)}
    translated(dynamic_sampling_rounds=0, oversampling=1.0, eval_stderr=defaults["eval_stderr"])


def test_no_key_is_in_two_places() -> None:
    known = {each.name for each in dataclasses.fields(Recipe)} | trainer_fields().keys()
    assert not TRANSLATED & WITHOUT_EFFECT
    assert not (TRANSLATED | WITHOUT_EFFECT) & REASONS.keys()
    assert known >= TRANSLATED | WITHOUT_EFFECT | REASONS.keys()


def test_corrections_and_anchor() -> None:
    """Another engine samples, so anchor=old is corrected as in the paper."""
    correction = "algorithm.rollout_correction"
    keys = translated(anchor="old")
    assert (keys[f"{correction}.rollout_is"], keys[f"{correction}.rollout_is_threshold"]) == ("sequence", 5.0)
    keys = translated(anchor="old", rollout_correction="tis", rollout_correction_kwargs={"cap": 3.0})
    assert (keys[f"{correction}.rollout_is"], keys[f"{correction}.rollout_is_threshold"]) == ("token", 3.0)
    assert translated(anchor="old", rollout_correction="none")[f"{correction}.rollout_is"] is None
    assert not keys[f"{correction}.bypass_mode"]


def test_an_asynchronous_run() -> None:
    """Every update waits for its own responses, and weights are sent once per rollout batch."""
    site = dataclasses.replace(SITE, trainer_mode="separate_async", rollout_processes=2, max_staleness=1)
    keys = translated(site, num_iterations=2)
    expected = {
        "trainer.v1.trainer_mode": "separate_async",
        "trainer.v1.separate_async.parameter_sync_step": 16,
        "trainer.v1.sampler.max_off_policy_threshold": 2,
        f"{ROLLOUT}.n_gpus_per_node": 2,
        f"{ROLLOUT}.checkpoint_engine.backend": "ctpo_ray",
        "+ray_kwargs.ray_init.num_gpus": 3,
        f"+{ACTOR}.optim.updates": 2,
    }
    assert {name: keys[name] for name in expected} == expected
    on_gpus = translated(dataclasses.replace(site, accelerator=True), anchor="old")
    assert on_gpus[f"{ROLLOUT}.checkpoint_engine.backend"] == "nccl"
    with pytest.raises(UserError, match="every ratio would be 1"):
        translated(site, anchor="old")


def test_a_critic() -> None:
    keys = translated(
        objective="ppo", advantages="gae", critic={"learning_rate": 2e-3, "warmup_batches": 1, "epochs": 2}
    )
    expected = {
        "algorithm.adv_estimator": "gae",
        "algorithm.lam": 1.0,
        "critic.optim.lr": 2e-3,
        "critic.ppo_epochs": 2,
        "critic.model.path": "there/model",
        "trainer.critic_warmup": 2,
        "critic.ppo_micro_batch_size_per_gpu": 32,
    }
    assert {name: keys[name] for name in expected} == expected


def test_a_run_goes_on_from_a_checkpoint() -> None:
    keys = translated(
        dataclasses.replace(SITE, resume_from=Path("run/verl/global_step_3")), save_total_limit=1
    )
    assert keys["trainer.resume_mode"] == "resume_path"
    assert keys["trainer.resume_from_path"] == "run/verl/global_step_3"
    assert keys["trainer.val_before_train"] is False
    assert keys["trainer.max_actor_ckpt_to_keep"] == 2


def test_what_the_user_says_to_verl_wins() -> None:
    keys = translated(overrides={f"{ACTOR}.policy_loss.preset": "grpo", "+new.key": 1, "trainer.nnodes": 2})
    assert keys[f"{ACTOR}.policy_loss.preset"] == "grpo"
    assert f"+{ACTOR}.policy_loss.preset" not in keys
    assert (keys["+new.key"], keys["trainer.nnodes"]) == (1, 2)


def test_the_length_of_a_run() -> None:
    steps = "trainer.total_training_steps"
    assert translated(rollout_batches=None, max_steps=48)[steps] == 3
    assert translated(rollout_batches=None, num_train_epochs=2.0)[steps] == 2 * (2048 // 64)
    keys = translated(rollout_batches=100)
    assert keys["trainer.total_epochs"] * (2048 // 64) >= 100
    assert math.isclose(keys[f"{ACTOR}.optim.weight_decay"], 0.0)
