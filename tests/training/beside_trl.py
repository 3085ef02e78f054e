"""Training beside stock TRL: both trainers take the same minibatches, and their parameters are compared afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from ctpo.training.step.minibatches import dealt_order

PLAIN = {"completion_head": False, "skip_zero_advantage": False, "max_tokens_per_micro_batch": 0}
"""TRL's own forward pass over whole micro-batches. Another pass rounds differently, and Adam enlarges that where
gradients are nearly 0."""
ONE_BATCH = {"max_steps": 4, "logging_steps": 2}
"""One rollout batch, of which three updates are off-policy."""
GRPO_AS_IN_TRL = {"ratio_low": 0.2, "ratio_high": 0.2, "ratio_dual": None, "reduction": "seq-mean-token-mean"}


def parameters(trainer: Any) -> torch.Tensor:
    """All parameters of a trainer's model, one after the other."""
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def stock_trainer(fit: Callable[..., Any], trainer_class: type = GRPOTrainer, **settings: Any) -> Any:
    """TRL's own trainer, with our dealing instead of its shuffle, so that both take the same minibatches."""

    def dealt(batch: dict[str, Any]) -> dict[str, Any]:
        order = dealt_order(len(batch["prompt_ids"]), minibatches=4, group=4)
        return {name: value[order] if value.ndim else value for name, value in batch.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl.trainer.grpo_trainer.shuffle_sequence_dict", dealt)
        plain = {"loss_type": "grpo", "epsilon": 0.2, "bf16": False, "gradient_checkpointing": False}
        return fit(trainer_class, GRPOConfig, **{**plain, **settings})


def assert_trained_alike(ours: Any, theirs: Any, otherwise: Any) -> None:
    """The distance of two trainers is below 3e-4 of what the setting under test moves.

    Processors add in other orders, and Adam enlarges that at single parameters. So the whole distance counts.

    Args:
        ours: a trainer.
        theirs: one that must train as it does.
        otherwise: one without the setting under test.
    """
    moved = (parameters(theirs) - parameters(otherwise)).norm()
    assert moved > 1e-3
    assert (parameters(ours) - parameters(theirs)).norm() < 3e-4 * moved
