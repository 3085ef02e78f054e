"""The tensors of one call, in one object that the definition and the C pass both read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ctpo.objectives.reductions import Count


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """The arguments of one call, after their shapes and dtypes were checked.

    Shapes: B rows of T tokens are [B, T]; N tokens of a packed batch are [N], and S is its number of segments.

    Attributes:
        logps: [B, T] or [N] log-probs of the current policy, nats.
        old_logps: log-probs of the anchor of the ratio, nats, the shape of logps.
        advantages: one value per sequence ([B] or [S]), or one per token.
        response_mask: the shape of logps, not 0 on tokens that the model sampled.
        rejection_mask: the shape of logps, not 0 on tokens that neither loss nor denominators count.
        weights: factors of the token losses, shaped as advantages may be.
        num_tokens: the number of tokens that the loss is divided by; None counts those of this call.
        num_sequences: the number of sequences that the loss is divided by; None counts those of this call.
        segment_ids: [N] the number of each token's segment.
        cu_seqlens: [S + 1] cumulative segment lengths, instead of segment_ids.
        turn_ids: the shape of logps, the number of each token's turn.
    """

    logps: Tensor
    old_logps: Tensor
    advantages: Tensor
    response_mask: Tensor
    rejection_mask: Tensor | None = None
    weights: Tensor | None = None
    num_tokens: Count | None = None
    num_sequences: Count | None = None
    segment_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    turn_ids: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All the tensors of the call."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    @property
    def packed(self) -> bool:
        """Whether the tokens are one packed batch [N] instead of rows [B, T]."""
        return self.logps.ndim == 1
