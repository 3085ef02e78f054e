"""CTPOConfig: defaults that depend on the machine, and settings that are refused because they have no effect."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from ctpo import CTPOConfig
from ctpo.training.config.recipe import Recipe


def test_a_cpu_gets_no_checkpointing_and_no_bf16_unless_asked(tmp_path: Path) -> None:
    config = CTPOConfig(str(tmp_path), use_cpu=True)
    assert config.gradient_checkpointing is False
    assert config.bf16 is False
    names = {each.name for each in dataclasses.fields(CTPOConfig)}
    newest = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    asked = CTPOConfig(str(tmp_path), use_cpu=True, bf16=True, **{newest: True})
    assert asked.gradient_checkpointing is True
    assert asked.bf16 is True


def test_objective_by_name_with_overrides(tmp_path: Path) -> None:
    config = CTPOConfig(str(tmp_path), use_cpu=True, objective="grpo", objective_kwargs={"ratio_high": 0.3})
    assert config.objective_settings()["ratio_high"] == 0.3
    assert config.build_objective().trust_region.ratio_high == 0.3
    assert (
        CTPOConfig(str(tmp_path), use_cpu=True, objective_kwargs='{"log_high": 0.1}').objective_settings()[
            "log_high"
        ]
        == 0.1
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "ctpoo"}, "ctpoo.*ctpo"),
        ({"objective_kwargs": {"hihg": 0.1}}, "hihg.*high"),
        ({"objective_kwargs": {"log_high": -0.1}}, "log_high.*-0.1"),
        ({"anchor": "new"}, "anchor='new' is not one of old, rollout"),
        ({"denominators": "all"}, "denominators='all' is not one of minibatch, rollout-batch, micro-batch"),
        ({"max_prompt_length": 0}, "max_prompt_length=0 is too small"),
        (
            {"objective_kwargs": {"kl_coef": 0.04}},
            "objective_kwargs.kl_coef is not supported.*use beta instead",
        ),
        (
            {"objective_kwargs": {"entropy_coef": 0.01}},
            "objective_kwargs.entropy_coef is not supported.*use entropy_coef instead",
        ),
        (
            {"steps_per_generation": 6, "gradient_accumulation_steps": 4},
            "gradient_accumulation_steps=4 and steps_per_generation=6.*use gradient_accumulation_steps=3",
        ),
        (
            {"objective": "prefix-quantile", "objective_kwargs": {"across_ranks": True}},
            "objective_kwargs.across_ranks=True pools values over the processes of a run, and this run has one",
        ),
        ({"top_entropy_quantile": 1.5}, "top_entropy_quantile=1.5 is out of range; use 0 to 1"),
        ({"rollout_correction": "ice-pop"}, "rollout_correction='ice-pop' is not one of auto, recipe"),
        (
            {"rollout_correction": "tis", "rollout_correction_kwargs": {"low": 1}},
            "rollout_correction_kwargs.low is unknown for 'tis'; known: cap, veto, denominator",
        ),
        ({"rollout_correction": "tis", "rollout_correction_kwargs": {"cap": 0}}, "weight.cap: 0 must be > 0"),
        ({"rollout_correction": "none", "rollout_correction_kwargs": {"veto": 0.1}}, "has no effect with"),
        (
            {"rollout_correction": "tis", "anchor": "rollout"},
            "'tis' with anchor='rollout' would count .* twice",
        ),
        (
            {"rollout_correction": "tis", "use_vllm": True, "vllm_importance_sampling_clip_max": 2.0},
            "vllm_importance_sampling_clip_max=2.0 has no effect beside rollout_correction='tis'",
        ),
        (
            {
                "rollout_correction_kwargs": {"cap": 2.0},
                "use_vllm": True,
                "vllm_importance_sampling_clip_max": 2.0,
            },
            "vllm_importance_sampling_clip_max=2.0 has no effect beside rollout_correction_kwargs",
        ),
        ({"rollout_correction": "custom"}, "'custom' needs rollout_correction_kwargs: weight, gates or veto"),
        (
            {"rollout_correction_kwargs": {"cap": 2.0}, "anchor": "rollout"},
            "rollout_correction_kwargs has no effect.*with anchor='rollout'",
        ),
        (
            {
                "rollout_correction_kwargs": {"cap": 2.0},
                "use_vllm": True,
                "vllm_importance_sampling_correction": False,
            },
            "rollout_correction_kwargs has no effect.*with vllm_importance_sampling_correction=False",
        ),
        (
            {"rollout_correction": "trm-max", "anchor": "rollout", "behaviour_lag": 2},
            "rollout_correction='trm-max' would compare the old weights .* behaviour_lag=2",
        ),
        ({"entropy_coef": math.nan}, "entropy_coef=nan is not finite"),
        ({"off_policy_mask_threshold": math.inf}, "off_policy_mask_threshold=inf is not finite"),
        ({"use_vllm": True, "top_p": 0.9}, "top_p=0.9: vLLM reports log-probs of the tokens that are left"),
        ({"use_vllm": True, "anchor": "rollout", "min_p": 0.1}, "min_p=0.1: vLLM reports"),
        ({"use_vllm": True, "generation_kwargs": {"top_k": 20}}, "top_k=20: vLLM reports"),
        ({"advantages": "grpo"}, "advantages='grpo' is not one of trl, rloo, maxrl"),
        (
            {"advantages": "maxrl", "scale_rewards": "batch"},
            "scale_rewards='batch' has no effect with advantages='maxrl'",
        ),
    ],
)
def test_the_error_for_a_bad_setting_says_how_to_correct_it(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        CTPOConfig(str(tmp_path), use_cpu=True, **settings)
    assert "\n" not in str(error.value)


def test_updates_per_rollout_batch(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"per_device_train_batch_size": 8, "num_generations": 8, "use_cpu": True}
    assert CTPOConfig(str(tmp_path), **keys).updates_per_rollout_batch == 1
    assert CTPOConfig(str(tmp_path), steps_per_generation=16, **keys).updates_per_rollout_batch == 16
    many = CTPOConfig(
        str(tmp_path), steps_per_generation=8, num_iterations=4, gradient_accumulation_steps=2, **keys
    )
    assert many.updates_per_rollout_batch == 16


def test_every_setting_has_a_help_text_and_a_place_in_the_documentation() -> None:
    document = (
        Path(__file__).parents[2].joinpath("docs", "reference", "training.md").read_text(encoding="utf-8")
    )
    for owner, documented in ((CTPOConfig, True), (Recipe, False)):
        for each in dataclasses.fields(owner):
            if each.name in vars(owner)["__annotations__"]:
                assert len(each.metadata["help"]) > 20, each.name
                assert not documented or f"`{each.name}`" in document, each.name
