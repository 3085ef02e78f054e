"""What becomes of every key of a recipe under verl: translated, without effect there, or refused with the reason.

Refused keys are those that would change what is trained. A key at its default value is never refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.training.config.recipe import Recipe
from ctpo.training.config.sources import trainer_fields

TRANSLATED: Final = frozenset(
    # of the recipe
    "task model dataset eval_dataset columns train_problems max_prompt_length mask_void_turns overlong_buffer "
    "eval_problems eval_every rollout_batches rollout_batch_size transcripts tools tool_timeout_s "
    "tool_memory_mb unsafe_no_isolation "
    # of the trainer
    "objective objective_kwargs anchor rollout_correction rollout_correction_kwargs advantages scale_rewards critic "
    "learning_rate lr_scheduler_type warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim "
    "num_generations generation_batch_size steps_per_generation per_device_train_batch_size "
    "gradient_accumulation_steps num_iterations max_steps num_train_epochs max_completion_length temperature top_p "
    "top_k mask_truncated_completions beta entropy_coef seed shuffle_dataset save_steps save_strategy "
    "save_total_limit chat_template_kwargs activation_checkpointing gradient_checkpointing bf16 use_vllm "
    "vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size vllm_enable_sleep_mode report_to "
    "output_dir use_cpu".split()
)
"""Keys that decide something of verl's configuration, of the data, or of our agent loop."""

WITHOUT_EFFECT: Final = frozenset(
    "threads pack_rows share_prompts completion_head fused_layers skip_zero_advantage max_tokens_per_micro_batch "
    "keep_freed_memory vllm_mode log_level log_level_replica run_name logging_nan_inf_filter log_on_each_node "
    "per_device_eval_batch_size eval_accumulation_steps dataloader_num_workers dataloader_pin_memory "
    "dataloader_prefetch_factor dataloader_persistent_workers ddp_find_unused_parameters ddp_timeout "
    "ddp_bucket_cap_mb include_num_input_tokens_seen torch_empty_cache_steps skip_memory_metrics".split()
)
"""Keys that change speed, memory or logging of our own trainer only. verl has settings of its own for those."""

_PROBLEMS_OF_A_BATCH = "verl draws its own prompts, in the order of the data"
_TRL = "it is a part of TRL's trainer that verl does not have"
REASONS: Final[Mapping[str, str]] = {
    "eval_stderr": "verl evaluates all held-out problems each time; use eval_problems",
    "shared": "the runs of a comparison share results on the engine `local` only",
    "dynamic_sampling_rounds": f"{_PROBLEMS_OF_A_BATCH}; use engine.algorithm.filter_groups.enable",
    "oversampling": _PROBLEMS_OF_A_BATCH,
    "curriculum": _PROBLEMS_OF_A_BATCH,
    "group_metric": _PROBLEMS_OF_A_BATCH,
    "behaviour_lag": "verl's lag is real; use trainer_mode=separate_async",
    "denominators": "verl divides by the tokens and responses of the minibatch",
    "whole_groups": "verl's minibatches hold whole groups",
    "compute_dtype": "verl computes in float32 on a CPU; on a GPU use bf16",
    "max_nonfinite_updates": "verl skips an update whose gradient norm is not finite, and never ends a run for it",
    "calibrate_online": "the trust region of verl's workers is fixed for the run",
    "diagnostics": "verl reports the objective's statistics always",
    "fsdp": "verl shards by itself; use engine.actor_rollout_ref.actor.fsdp_config",
    "fsdp_config": "verl shards by itself; use engine.actor_rollout_ref.actor.fsdp_config",
    "deepspeed": "verl has no DeepSpeed; it shards with FSDP2",
    "model_init_kwargs": "verl loads the model; use engine.actor_rollout_ref.model.override_config",
    "fp16": "verl's mixed precision is bfloat16 here; use engine.actor_rollout_ref.actor.fsdp_config.dtype",
    "sync_ref_model": "verl's reference model is fixed",
    "use_liger_kernel": "use engine.actor_rollout_ref.model.use_liger",
    "lr_scheduler_kwargs": "verl's schedules take none; use engine.actor_rollout_ref.actor.optim",
    "reward_weights": "a recipe has one reward",
    "push_to_hub": "verl does not upload; upload model/ after the run",
    "vllm_server_base_url": "verl starts its own servers",
    "vllm_server_host": "verl starts its own servers",
    "use_bias_correction_kl": "verl's KL penalty is k3 without importance weights",
    **dict.fromkeys(
        (
            *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
            *("lora_modules_to_save", "use_rslora"),
        ),
        "adapters are not translated yet; use engine.actor_rollout_ref.model.lora_rank",
    ),
}
"""Why a key is refused, for those where there is more to say than that verl has none of the kind."""


def check_counterparts(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Check that verl has a counterpart for every key that is not at its default.

    Args:
        recipe: the keys of the recipe itself.
        given: the settings of `CTPOConfig` that the recipe gives.

    Raises:
        UserError: for the first key without one, with the reason.
    """
    defaults = {each.name: each.default for each in dataclasses.fields(Recipe)}
    values = {name: value for name, value in vars(recipe).items() if value != defaults[name]}
    fields = trainer_fields()
    values |= {name: value for name, value in given.items() if value != fields[name].default}
    for name, value in values.items():
        if name not in TRANSLATED and name not in WITHOUT_EFFECT:
            reason = REASONS.get(name, _TRL)
            raise UserError(f"{name}={value!r} cannot run with engine=verl: {reason}; or drop the key")
