"""LoRA: adapters alone are trained and saved, rollouts use them, the reference is the model without them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.evaluation.model import load_model
from ctpo.runs.directory import RunDirectory
from ctpo.tasks.arithmetic import model_path
from ctpo.training.run.train import train

peft = pytest.importorskip("peft", reason="pip install peft")


def adapters(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in trainer.model.state_dict().items() if "lora_" in name}


@pytest.fixture(scope="module")
def lora(fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "beta": 0.05, "anchor": "rollout"}
    return fit(CTPOTrainer, CTPOConfig, peft_config=config(), **settings)


def config() -> Any:
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=32, task_type="CAUSAL_LM")


def test_only_adapters_move(lora: Any, embedded: Any) -> None:
    weights = {
        name.replace(".base_layer", ""): value
        for name, value in lora.model.base_model.model.named_parameters()
    }
    for name, value in embedded[0].named_parameters():
        assert torch.equal(value, weights[name]), name
    assert any(bool((value != 0).any()) for name, value in adapters(lora).items() if "lora_B" in name)


def test_the_reference_is_the_model_without_adapters(lora: Any) -> None:
    """At the start both agree, so the divergence is 0; later it is not. No second copy of the model is held."""
    assert lora.ref_model is None
    logged = [row["kl"] for row in lora.state.log_history if "kl" in row]
    assert logged[-1] > 1e-6


def test_rollouts_are_sampled_with_the_adapters(lora: Any) -> None:
    """The engine's log-probs are the trainer's: had it sampled from the base model, they would differ by far more."""
    inputs = lora._buffered_inputs[2]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    keep = inputs["completion_ids"].shape[1]
    kept = (inputs["completion_mask"] * inputs["tool_mask"]).bool()

    def gap() -> float:
        with torch.no_grad():
            logps, _, _ = lora._get_per_token_logps_and_entropies(lora.model.eval(), ids, mask, keep)
        found: float = (logps - inputs["sampling_per_token_logps"])[kept].abs().mean().item()
        return found

    with_adapters = gap()
    with lora.model.disable_adapter():
        without = gap()
    lora.model.train()
    assert with_adapters < without / 2


def test_resumed_in_a_rollout_batch_it_ends_the_same(lora: Any, fit: Callable[..., Any]) -> None:
    checkpoint = Path(lora.args.output_dir) / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    settings = {"max_steps": 6, "beta": 0.05, "anchor": "rollout"}
    again = fit(CTPOTrainer, CTPOConfig, peft_config=config(), resume=str(checkpoint), **settings)
    expected = adapters(lora)
    assert all(torch.equal(value, expected[name]) for name, value in adapters(again).items())


@pytest.fixture(scope="module")
def recipe_run(
    small_recipe: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    keys = {"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 1e-2}
    return train(
        small_recipe(tmp_path_factory.mktemp("lora") / "run", save_steps=6, eval_every=0, **keys)
    ).run


def test_a_recipe_saves_the_merged_model_and_the_adapter(recipe_run: RunDirectory) -> None:
    merged = load_model(str(recipe_run.model))[0].state_dict()
    adapted = load_model(str(recipe_run.adapter))[0].state_dict()
    base = load_model(str(model_path()))[0].state_dict()
    assert merged.keys() == base.keys()
    moved = {name for name, value in merged.items() if not torch.equal(value, base[name])}
    assert moved == {name for name in merged if "q_proj" in name or "v_proj" in name}
    for name, value in adapted.items():
        torch.testing.assert_close(value, merged[name], atol=1e-6, rtol=0)
    from safetensors.torch import load_file

    adapter = load_file(recipe_run.adapter / "adapter_model.safetensors")
    summary = json.loads(recipe_run.summary.read_text())
    assert summary["trained_parameters"] == sum(value.numel() for value in adapter.values())


def test_a_resumed_recipe_saves_the_same_model(recipe_run: RunDirectory) -> None:
    """Within the last rollout batch, and after training but before saving."""
    expected = (recipe_run.model / "model.safetensors").read_bytes()
    for checkpoint in ("checkpoint-8", ""):
        for folder in (recipe_run.model, recipe_run.adapter, recipe_run.path / (checkpoint or "none")):
            shutil.rmtree(folder, ignore_errors=True)
        recipe_run.summary.unlink()
        assert train({}, resume=recipe_run.path).finished
        assert (recipe_run.model / "model.safetensors").read_bytes() == expected
