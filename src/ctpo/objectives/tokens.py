"""The tokens of one call, cleaned once, so that no later file meets a NaN, an infinity or a masked value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.numerics import POSITIVE_LOGP, SATURATION, compute_dtype

MISSING_TURNS: Final = (
    "turn_ids: None, and this objective treats every turn on its own; pass the turn of each token, for example "
    "turns_of(response_mask) where a tool's output separates the turns."
)


@dataclass(frozen=True)
class Tokens:
    """Log-probs in the compute dtype, in which everything that must not count has its neutral value.

    `mask` marks the tokens that the model sampled. They count as positions and in denominators. `kept` marks those
    of them whose log-probs can be used. A token in `mask` but not in `kept` is neutralised: its ratio is exactly 1 in
    every product, mean and minimum, and it adds neither loss nor gradient.
    """

    logps: Tensor
    """log π_θ, nats, differentiable, 0 where not kept."""
    log_ratio: Tensor
    """d_t = log π_θ − log π_old, nats, differentiable, 0 where not kept."""
    mask: Tensor
    kept: Tensor
    nonfinite: Tensor
    """Tokens under the mask with a NaN or infinite log-prob."""
    saturated: Tensor
    """Tokens under the mask with finite log-probs and |d_t| > SATURATION."""
    positive: Tensor
    """Tokens under the mask with a value above POSITIVE_LOGP, new or old, which no log-prob reaches."""
    layout: Layout
    old_logps: Tensor
    """log π_old, nats, 0 where not kept."""
    advantages: Tensor
    """A, broadcastable, 0 where not kept. A rejected token has one too, because products and means still see it."""
    weights: Tensor
    """The factor of each token's loss, broadcastable: the weight of the call, 0 where the loss does not count it."""
    turns: Layout | None = None
    """How the tokens form turns, if the call knows them."""

    def by_turn(self) -> Tokens:
        """The same tokens with every turn as a sequence of its own.

        Raises:
            ValueError: the call does not know the turns.
        """
        if self.turns is None:
            raise ValueError(MISSING_TURNS)
        return replace(self, layout=self.turns)

    def attach(self, statistic: Tensor) -> Tensor:
        """sg(x_t) + (log π_t − sg(log π_t)): the value of a statistic with the gradient of the current token."""
        return statistic.detach().to(self.logps.dtype) + (self.logps - self.logps.detach())

    def positions(self) -> Tensor:
        """The number of sampled tokens so far, from 1, in float64 where the device has it."""
        return self.layout.prefix_sum(self.mask)


def as_bool(mask: Tensor) -> Tensor:
    """The mask as booleans; the tensor itself if it is boolean already."""
    return mask if mask.dtype == torch.bool else mask != 0


def sanitise(logps: Tensor, old_logps: Tensor, mask: Tensor, layout: Layout) -> Tokens:
    """The tokens of a call: in the compute dtype, classified, with unusable values replaced by `torch.where`.

    Multiplying by the mask instead would turn a NaN at one masked token into a NaN of the whole row.

    Args:
        logps, old_logps: [B, T] or [N] log-probs of the new and the old policy, nats.
        mask: the shape of logps, true or not 0 on tokens that the model sampled.
        layout: how the tokens form sequences.
    """
    dtype = compute_dtype(logps, old_logps)
    mask = as_bool(mask)
    new, old = logps.to(dtype), old_logps.detach().to(dtype)
    raw = (new - old).detach()
    finite = new.detach().isfinite() & old.isfinite()
    usable = raw.abs() <= SATURATION  # false for NaN and inf too
    kept = mask & usable
    zero = torch.zeros((), dtype=dtype, device=logps.device)
    logps, old_logps = torch.where(kept, new, zero), torch.where(kept, old, zero)
    return Tokens(
        logps=logps,
        log_ratio=torch.where(kept, logps - old_logps, zero),
        mask=mask,
        kept=kept,
        nonfinite=mask & ~finite,
        saturated=mask & finite & ~usable,
        positive=mask & ((new.detach() > POSITIVE_LOGP) | (old > POSITIVE_LOGP)),
        layout=layout,
        old_logps=old_logps,
        advantages=zero,
        weights=torch.ones_like(zero),
    )


def turns_of(response_mask: Tensor) -> Tensor:
    """The number of each token's turn, from 0, where turns are the runs of sampled tokens.

    Between two turns lies what the model did not sample, such as the output of a tool.

    Args:
        response_mask: [B, T] or [N], not 0 on tokens that the model sampled.

    Returns:
        Integers, the shape of the mask. What lies before the first turn has −1, and what follows a turn its number.

    Example:
        turns_of(torch.tensor([0, 1, 1, 0, 1]))  # [-1, 0, 0, 0, 1]
    """
    mask = as_bool(response_mask)
    before = torch.cat([torch.zeros_like(mask[..., :1]), mask[..., :-1]], dim=-1)
    return (mask & ~before).cumsum(-1) - 1
