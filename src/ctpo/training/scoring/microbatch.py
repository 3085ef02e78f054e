"""`MicroBatch`: the responses of one micro-batch as named tensors, and `Scored`: what scoring a part of them gave.

TRL hands a trainer a dictionary. `MicroBatch.of` reads it at that seam; nothing else reads TRL's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from ctpo.objectives import Details, turns_of
from ctpo.training.scoring.rows import Rows

MULTIMODAL = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)
"""The names of TRL's multimodal inputs, which only TRL's own forward pass understands."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """B responses and their prompts, padded as TRL pads them: P prompt tokens (left) and T completion tokens (right).

    Log-probs are in nats and belong to the completion tokens. A completion also holds the tokens of tools, which the
    model did not sample. They are in `completion_mask` and not in `response_mask`.
    """

    prompt_ids: Tensor
    """[B, P]"""
    prompt_mask: Tensor
    """[B, P] 1 on tokens, 0 on padding."""
    completion_ids: Tensor
    """[B, T]"""
    completion_mask: Tensor
    """[B, T] 1 on tokens, 0 on padding."""
    response_mask: Tensor
    """[B, T] boolean: the tokens that the model sampled. Only these enter the loss."""
    advantages: Tensor
    """[B], or [B, T] for one value per token."""
    num_tokens: Tensor
    """Scalar: tokens that the loss counts (`counted`) in the whole minibatch, over all micro-batches and processes."""
    num_sequences: Tensor
    """Scalar: responses of the whole minibatch with at least one such token."""
    old_logps: Tensor | None = None
    """[B, T] recomputed by the trainer before the first update on the rollout batch, if they were needed."""
    rollout_logps: Tensor | None = None
    """[B, T] reported by the rollout engine, if it reports any."""
    reference_logps: Tensor | None = None
    """[B, T] of the reference model, if `beta` is not 0."""
    rollout_weights: Tensor | None = None
    """[B, T] the weights of the rollout correction; 0 where it rejected a token that stays in the denominators."""
    rejection_mask: Tensor | None = None
    """[B, T] boolean: tokens that the rollout correction removed from the denominators too."""
    rewards: Tensor | None = None
    """[B] the weighted sum over the reward functions, if diagnostics asked for it."""
    null_sizes: Tensor | None = None
    """[B] the mean |A| of the response's group, or [B, T] that of the token's turn, if diagnostics asked for it."""
    multimodal: Mapping[str, Any] = field(default_factory=dict)
    """TRL's inputs named in `MULTIMODAL`, as they came."""

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> MicroBatch:
        """The micro-batch in TRL's dictionary.

        `minibatch_num_tokens`, `minibatch_num_sequences`, `rewards`, `null_sizes`, `rollout_weights` and
        `rejection_mask` are entries that `CTPOTrainer` adds. Without the first two, the micro-batch counts as the whole
        minibatch.
        """
        response_mask: Tensor = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            response_mask = response_mask & inputs["tool_mask"].bool()
        rejection_mask = inputs.get("rejection_mask")
        counted = response_mask if rejection_mask is None else response_mask & ~rejection_mask
        num_tokens = inputs.get("minibatch_num_tokens")
        num_sequences = inputs.get("minibatch_num_sequences")
        return cls(
            prompt_ids=inputs["prompt_ids"],
            prompt_mask=inputs["prompt_mask"],
            completion_ids=inputs["completion_ids"],
            completion_mask=inputs["completion_mask"],
            response_mask=response_mask,
            advantages=inputs["advantages"],
            num_tokens=counted.sum() if num_tokens is None else num_tokens,
            num_sequences=counted.any(dim=1).sum() if num_sequences is None else num_sequences,
            old_logps=inputs.get("old_per_token_logps"),
            rollout_logps=inputs.get("sampling_per_token_logps"),
            reference_logps=inputs.get("ref_per_token_logps"),
            rollout_weights=inputs.get("rollout_weights"),
            rejection_mask=rejection_mask,
            rewards=inputs.get("rewards"),
            null_sizes=inputs.get("null_sizes"),
            multimodal={name: inputs[name] for name in MULTIMODAL if inputs.get(name) is not None},
        )

    def __len__(self) -> int:
        return len(self.response_mask)

    @property
    def rows(self) -> Rows:
        """What the scorer needs of it."""
        return Rows(
            self.prompt_ids, self.prompt_mask, self.completion_ids, self.completion_mask, self.response_mask
        )

    @property
    def counted(self) -> Tensor:
        """[B, T] boolean: the tokens of the response mask that loss and denominators count."""
        return (
            self.response_mask if self.rejection_mask is None else self.response_mask & ~self.rejection_mask
        )

    def weighted(self, advantages: Tensor) -> Tensor:
        """[B] or [B, T] these advantages, times the weights of the rollout correction if there are any."""
        if self.rollout_weights is None:
            return advantages
        advantages = advantages[:, None] if advantages.dim() == 1 else advantages
        weighted = advantages * self.rollout_weights
        return weighted if self.rejection_mask is None else weighted.masked_fill(self.rejection_mask, 0.0)

    @property
    def turn_ids(self) -> Tensor:
        """[B, T] the turn of each token, from 0: how often a tool has answered before it."""
        return turns_of(self.response_mask)

    @property
    def has_advantage(self) -> Tensor:
        """[B] boolean: responses with a weighted advantage other than 0 at a token that the model sampled."""
        advantages = self.weighted(self.advantages)
        advantages = advantages[:, None] if advantages.dim() == 1 else advantages
        return ((advantages != 0) & self.response_mask).any(dim=1)

    def take(self, index: Tensor) -> MicroBatch:
        """The same micro-batch with only these responses; the totals of the minibatch stay.

        Multimodal inputs are not laid out by response, so the result has none.
        """
        taken = {
            each.name: value[index]
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), Tensor) and value.ndim
        }
        return replace(self, **taken, multimodal={})


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A part of a micro-batch after its forward pass: B responses, T completion tokens."""

    batch: MicroBatch
    loss: Tensor
    """Scalar, to be differentiated."""
    policy_loss: Tensor
    """Scalar: the loss without a router's auxiliary loss."""
    advantages: Tensor
    """[B] or [B, T] the advantages as the objective got them: 0 where a mask left a token out."""
    logps: Tensor
    """[B, T] under the model being trained."""
    anchor_logps: Tensor
    """[B, T] the denominators of the importance ratios."""
    entropies: Tensor
    """[B, T] of the model's distribution at each token, in nats."""
    stats: dict[str, Tensor]
    details: Details | None = None
    """What the objective did to each token, if diagnostics cannot ask for it afterwards."""

    @property
    def signal(self) -> Tensor:
        """[B] or [B, T] the advantages times the weights of the rollout correction."""
        return self.batch.weighted(self.advantages)

    def detached(self) -> Scored:
        """The same without the autograd graph."""
        names = ("loss", "policy_loss", "logps", "anchor_logps", "entropies")
        return replace(self, **{name: getattr(self, name).detach() for name in names})
