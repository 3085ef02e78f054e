"""The value model: a trunk of transformers, and a linear head on the hidden states that predict the sampled tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.training.scoring.parts import PartScorer
from ctpo.training.scoring.rows import Rows
from ctpo.training.scoring.scorer import evaluating
from ctpo.training.view import TrainerView

_HEADS: Final = ("score", "classifier")
"""What transformers calls the head of a token classifier."""


class ValueModel(nn.Module):
    """Values of the states before tokens.

    It has no dropout.

    Args:
        head: [width] to 1.
        trunk: its own.
        trainer: whose policy it is.
        scorer: lays the rows out and runs the trunk.
        pass_name: "packed" or "padded"; None for the one that the policy's model allows.
    """

    def __init__(
        self,
        head: nn.Linear,
        trunk: nn.Module,
        trainer: TrainerView,
        scorer: PartScorer,
        pass_name: str | None = None,
    ) -> None:
        super().__init__()
        self.head, self.trunk = head, trunk
        self._trainer, self._scorer, self._pass_name = trainer, scorer, pass_name
        self.eval()

    @property
    def pass_name(self) -> str:
        """The pass by which rows go through the trunk, "packed" or "padded"."""
        return self._pass_name or self._scorer.pass_of(self._trainer.model)

    def values(self, rows: Rows) -> Tensor:
        """[B, T] values of the states before the wanted tokens, in float32, differentiable, and 0 elsewhere.

        Args:
            rows: each with a wanted token.
        """
        hidden = self._scorer.hidden(self.trunk, rows, self.pass_name)
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.head(hidden.to(self.head.weight.dtype))[:, 0]
        row, step = rows.wanted.nonzero(as_tuple=True)
        return values.new_zeros(rows.wanted.shape).index_put((row, step), values)

    def learned(self) -> dict[str, nn.Parameter]:
        """The parameters that are fitted, by name."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}


def policy_states(trainer: TrainerView, scorer: PartScorer, rows: Rows) -> Tensor:
    """[M, D] the policy's hidden states from which the wanted tokens are predicted, without gradient and dropout.

    Args:
        trainer: whose policy it is.
        scorer: runs the policy's trunk.
        rows: each with a wanted token.
    """
    trunk = scorer.unwrapped(trainer.model).base_model
    name = scorer.pass_of(trainer.model)
    with evaluating(trunk):
        return scorer.hidden(trunk, rows, name)


def value_model(trainer: TrainerView, scorer: PartScorer, knobs: Mapping[str, Any], seed: int) -> ValueModel:
    """The value model that the knobs of `critic` describe. Its values are 0 at first.

    It is the same in every process, and leaves torch's random state as it was.

    Raises:
        UserError: if the policy or the given model has no trunk of the kind that the knobs need.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _built(trainer, scorer, knobs)


def _built(trainer: TrainerView, scorer: PartScorer, knobs: Mapping[str, Any]) -> ValueModel:
    policy = scorer.unwrapped(trainer.model)
    if policy.base_model is policy:
        raise UserError(
            f"critic: {type(policy).__name__} has no trunk below its head; give critic.model, a token classifier"
        )
    device = policy.get_input_embeddings().weight.device
    head, pass_name = None, None
    if knobs["model"] is not None:
        trunk, head = _classifier(knobs["model"], policy)
        pass_name = "padded"  # nobody has tried whether this model can be packed
    else:
        trunk = _copied(trainer, policy)
    if knobs["layers"] is not None:
        _keep_layers(trunk, int(knobs["layers"]))
    elif knobs["model"] is None and _layers(trunk) is not None:
        _keep_layers(trunk, (trunk.config.get_text_config().num_hidden_layers + 1) // 2)
    width = trunk.config.get_text_config().hidden_size
    trunk = trunk.to(device)
    if not all(each.is_floating_point() for each in trunk.parameters()):
        raise UserError("critic: the policy's weights are quantised; give critic.model, or another trunk")
    trunk.requires_grad_(True)
    if knobs["lora_r"] is not None:
        trunk = _with_adapter(trunk, int(knobs["lora_r"]))
    if head is None:
        head = nn.Linear(width, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return ValueModel(head.float().to(device), trunk, trainer, scorer, pass_name)


def _copied(trainer: TrainerView, policy: Any) -> Any:
    """A copy of the policy's trunk, without adapters."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "get_base_model"):
        return copy.deepcopy(policy.base_model)
    return copy.deepcopy(model).unload().base_model


def _classifier(name: str, policy: Any) -> tuple[Any, nn.Linear]:
    """The trunk and the head of a token classifier with one label."""
    try:
        model = AutoModelForTokenClassification.from_pretrained(
            name, num_labels=1, dtype=policy.dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"critic.model={name} cannot be loaded ({reason}); give a directory or a hub id"
        ) from None
    head = next(
        (each for each in (getattr(model, place, None) for place in _HEADS) if each is not None), None
    )
    if not isinstance(head, nn.Linear) or model.base_model is model:
        raise UserError(f"critic.model={name}: {type(model).__name__} has no linear head; give another model")
    has, needs = (each.get_input_embeddings().num_embeddings for each in (model, policy))
    if has < needs:
        raise UserError(
            f"critic.model={name} knows {has} tokens, the policy {needs}; give a model with the policy's tokenizer"
        )
    return model.base_model, head


def _keep_layers(trunk: Any, count: int) -> None:
    """Drop all layers after the first `count`."""
    config = trunk.config.get_text_config()
    depth = config.num_hidden_layers
    if count > depth:
        raise UserError(f"critic.layers={count} is more than the trunk has; use 1 to {depth}")
    name = _layers(trunk)
    if name is None:
        raise UserError(
            f"critic.layers={count} needs one list of {depth} layers, which {type(trunk).__name__} has not; "
            "drop critic.layers"
        )
    setattr(trunk, name, getattr(trunk, name)[:count])
    config.num_hidden_layers = count


def _layers(trunk: Any) -> str | None:
    """The name of the trunk's list of layers; None if there is none, or several of that length."""
    depth = trunk.config.get_text_config().num_hidden_layers
    lists = [
        name
        for name, each in trunk.named_children()
        if isinstance(each, nn.ModuleList) and len(each) == depth
    ]
    return lists[0] if len(lists) == 1 else None


def _with_adapter(trunk: Any, rank: int) -> Any:
    """The trunk, frozen, with a LoRA adapter on all of its linear layers."""
    require("critic.lora_r", "peft", "peft")
    from peft import LoraConfig, get_peft_model

    linear = sorted({name for name, each in trunk.named_modules() if isinstance(each, nn.Linear)})
    return get_peft_model(trunk, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear))
