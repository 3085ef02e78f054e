"""`TrainerView`: what a part of the trainer may know of the trainer it belongs to.

`CTPOTrainer` provides all of it. No part imports the trainer itself, so that imports point one way.
"""

from __future__ import annotations

from typing import Any, Protocol

from ctpo.objectives import Objective
from ctpo.training.config.config import CTPOConfig
from ctpo.training.sampling.account import RolloutAccount


class TrainerView(Protocol):
    """A trainer as its parts see it. Names with an underscore are TRL's own."""

    args: CTPOConfig
    accelerator: Any
    state: Any
    """transformers' TrainerState: `global_step`, `epoch`, …"""
    model: Any
    model_wrapped: Any
    """The model as it is wrapped for distributed training."""
    processing_class: Any
    """The tokenizer."""
    objective: Objective
    beta: float
    temperature: float
    aux_loss_enabled: bool
    """Whether a mixture of experts adds a load-balancing loss."""
    current_gradient_accumulation_steps: int
    """Micro-batches in the optimizer step being taken, in this process."""
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    reward_func_names: list[str]
    reward_weights: Any
    _logs: Any
    """The columns of the last completions that TRL logs."""
    _step: int
    """Micro-batches trained on so far, in this process."""

    @property
    def batch_steps(self) -> int:
        """Micro-batches trained on per rollout batch, counting every pass over it."""

    @property
    def at_batch_end(self) -> bool:
        """Whether no micro-batch of the rollout batch is left to train on."""

    @property
    def policy_lag(self) -> int:
        """Rollout batches between the weights that sampled the rollout batch and those that first learned from it."""


class CreditView(TrainerView, Protocol):
    """What the choice of advantages may know of the trainer: how many responses a prompt has."""

    num_generations: int
    """Responses per prompt in training."""
    num_generations_eval: int
    """Responses per prompt in an evaluation."""


class SamplingView(TrainerView, Protocol):
    """What sampling may know of the trainer: the settings of its rollouts, and its vLLM."""

    rollout_account: RolloutAccount
    """What the last rollout batch cost, in this process."""
    chat_template: str | None
    """The template that TRL uses in place of the tokenizer's; None for the tokenizer's own."""
    chat_template_kwargs: dict[str, Any]
    tools: Any
    """The functions that the model may call."""
    train_dataset: Any
    rollout_rows: list[dict[str, Any]]
    """The rows of the dataset for which responses are being sampled, one per prompt that a rollout function gets."""
    eos_token_ids: list[int]
    """Ids of the tokens that end a response."""
    mask_truncated_completions: bool
    """Whether responses that reach the length limit are left out of the loss."""
    max_completion_length: int
    """Tokens."""
    num_iterations: int
    """Passes over each rollout batch."""
    top_k: int | None
    """None or 0 for all tokens."""
    top_p: float
    use_vllm: bool
    vllm_generation: Any
    """TRL's VLLMGeneration, if `use_vllm`."""
    _last_loaded_step: int
    """Optimizer steps of the weights that vLLM has."""

    @property
    def responses_before(self) -> int:
        """Responses that earlier rounds of this rollout batch sampled, over all processes."""


class GroupView(SamplingView, Protocol):
    """What the choice of groups may know of the trainer: its data, and what TRL has logged of a rollout batch."""

    num_generations: int
    """Responses per prompt."""
    train_dataset: Any
    shuffle_dataset: bool
    environment_factories: Any
    _metrics: Any
    """TRL's figures since its last log line: for "train" and "eval", lists by name."""
    _pending_extra_logs: Any
    """The columns that reward functions have logged for the rollout batch."""
