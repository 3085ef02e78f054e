"""The tokens of one call, cleaned once, so that no later file meets a NaN, an infinity or a masked value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.numerics import POSITIVE_LOGP, SATURATION, compute_dtype


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
    logps = torch.where(kept, new, zero)
    return Tokens(
        logps=logps,
        log_ratio=torch.where(kept, logps - torch.where(kept, old, zero), zero),
        mask=mask,
        kept=kept,
        nonfinite=mask & ~finite,
        saturated=mask & finite & ~usable,
        positive=mask & ((new.detach() > POSITIVE_LOGP) | (old > POSITIVE_LOGP)),
        layout=layout,
    )
