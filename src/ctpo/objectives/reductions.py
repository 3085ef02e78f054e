"""Reductions: what is summed and divided by what.

L_t is the loss of a token, T_i the length of sequence i in sampled tokens, and K a constant. N is the number of sampled
tokens and S the number of sequences with at least one, both of the whole minibatch if they are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.tokens import as_bool

REDUCTIONS: Final = {
    "token-mean": "Σ L_t / N",
    "seq-mean-token-mean": "(1/S) Σ_i (1/T_i) Σ_t L_t",
    "seq-mean-token-sum": "(1/S) Σ_i Σ_t L_t",
    "seq-mean-token-sum-norm": "(1/S) Σ_i Σ_t L_t / K",
    "sum": "Σ L_t",
}

Count = Tensor | float | int


@dataclass(frozen=True)
class Reduction:
    """A weighted sum of token losses.

    Attributes:
        name: one of REDUCTIONS.
        norm_length: K of `seq-mean-token-sum-norm`, in tokens. Dr.GRPO takes the generation budget.
        length_power: the losses of each sequence are also multiplied by T_i^length_power.

    Raises:
        ValueError: unknown name, or norm_length not above 0.

    Example:
        Reduction("seq-mean-token-sum-norm", norm_length=1024)  # as Dr.GRPO, with a budget of 1,024 tokens
    """

    name: str = "token-mean"
    norm_length: float = 1.0
    length_power: float = 0.0

    def __post_init__(self) -> None:
        checks.choice("reduction", self.name, REDUCTIONS)
        checks.number("norm_length", self.norm_length, 0.0, strict=True)

    def factors(
        self,
        mask: Tensor,
        layout: Layout,
        num_tokens: Count | None,
        num_sequences: Count | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """The factor of each token's loss, 0-d or broadcastable to the tokens.

        Args:
            mask: tokens that count in the loss.
            layout: how the tokens form sequences.
            num_tokens, num_sequences: N and S of the whole minibatch; None counts those under the mask.
            dtype: of the factor.
        """
        mask = as_bool(mask)
        if self.name == "sum":
            factor = torch.ones((), dtype=dtype, device=mask.device)
        elif self.name == "token-mean":
            tokens = layout.sum_shards(mask.count_nonzero()) if num_tokens is None else num_tokens
            factor = _at_least_one(tokens, mask.device, dtype).reciprocal()
        else:
            sequences = layout.count_sequences(mask) if num_sequences is None else num_sequences
            factor = _at_least_one(sequences, mask.device, dtype).reciprocal()
        if self.name == "seq-mean-token-sum-norm":
            factor = factor / self.norm_length
        power = self.length_power - (1.0 if self.name == "seq-mean-token-mean" else 0.0)
        if power != 0.0:
            factor = factor * layout.sequence_sum(mask).clamp(min=1).to(dtype).pow(power)
        return factor


def _at_least_one(count: Count, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The count, at least 1: an empty batch then has the loss 0, and not 0/0."""
    if not isinstance(count, Tensor):
        return torch.full((), max(float(count), 1.0), dtype=dtype, device=device)
    return count.to(device=device, dtype=dtype).clamp(min=1)
