"""LoRA in a recipe: the adapter that a run trains, and the model that it saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctpo.evaluation.model import load_model
from ctpo.runs.directory import RunDirectory
from ctpo.training.config.recipe import ModelKeys

if TYPE_CHECKING:  # an optional dependency
    from peft import LoraConfig


def lora_config(recipe: ModelKeys) -> LoraConfig | None:
    """What a recipe says of its adapter, as peft takes it; None if it trains the weights themselves."""
    if not recipe.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_target_modules,
        modules_to_save=recipe.lora_modules_to_save,
        use_rslora=recipe.use_rslora,
    )


def save(trainer: Any, run: RunDirectory) -> None:
    """Save a run's trained model. With LoRA, `model/` is the merged model and `adapter/` the adapter alone.

    The merged model is one like any other for `ctpo eval`, vLLM and further training. Merging changes the trainer's
    model, so this ends its use. Every process must call.
    """
    if not hasattr(trainer.accelerator.unwrap_model(trainer.model), "merge_and_unload"):
        trainer.save_model(str(run.model))
        return
    trainer.save_model(str(run.adapter))
    if trainer.is_world_process_zero():
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # no process has the whole weights
            merged, _ = load_model(str(run.adapter))
        else:
            merged = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        merged.save_pretrained(run.model)
        trainer.processing_class.save_pretrained(run.model)


def adapter_facts(trainer: Any, run: RunDirectory, recipe: ModelKeys) -> dict[str, Any]:
    """What a run's summary says of its adapter; empty if it has none."""
    if not recipe.use_peft:
        return {}
    trained = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    return {"adapter": run.adapter.name, "trained_parameters": trained}
