"""The objective: ratio × trust region × surrogate × reduction, and what one call returns.

Shape legend: B rows, T positions. The composition in `compose` is the definition; faster paths must equal it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.layouts import Layout, Padded
from ctpo.objectives.ratios import Ratio, log_weight
from ctpo.objectives.reductions import REDUCTIONS, Count, Reduction
from ctpo.objectives.stats import summarise
from ctpo.objectives.surrogates import Surrogate, truncate
from ctpo.objectives.tokens import sanitise
from ctpo.objectives.trust_regions import TrustRegion


@dataclass(frozen=True)
class Output:
    """Result of one call.

    Attributes:
        loss: scalar to minimise, reduced with the objective's reduction.
        token_loss: [B, T], unreduced, 0 where a token does not count; differentiable.
        stats: detached 0-d tensors (see `stats.summarise`).
    """

    loss: Tensor
    token_loss: Tensor
    stats: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A policy objective composed of four independent parts.

    loss = Σ_t weight_t · L_t, L_t = surrogate(log ratio_t, A_t, region_t), weight_t from the reduction.

    Attributes:
        ratio: which tokens' ratios are multiplied.
        trust_region: log-space limits at every token.
        surrogate: what a token's loss does with weight, advantage and limits.
        reduction: what is summed and divided by what.
        on_bad: "neutralise" treats a token under the mask with non-finite log-probs, or with |log ratio| >
            20, as ratio 1 without loss or gradient and counts it; "raise" refuses the batch (reads a value
            from the device).
    """

    ratio: Ratio
    trust_region: TrustRegion
    surrogate: Surrogate
    reduction: Reduction = field(default_factory=Reduction)
    on_bad: str = "neutralise"

    def __post_init__(self) -> None:
        checks.choice("reduction", self.reduction.name, REDUCTIONS)
        checks.choice("on_bad", self.on_bad, ("neutralise", "raise"))

    def __call__(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        num_tokens: Count | None = None,
        num_sequences: Count | None = None,
    ) -> Output:
        """Loss of one micro-batch.

        Args:
            logps: [B, T] log π_θ of the sampled tokens, nats, with gradient.
            old_logps: [B, T] log-probs of the anchor of the ratio, nats; no gradient flows into them.
            advantages: [B] or [B, T]; positive favours the sampled tokens.
            mask: [B, T] boolean or 0/1, true on tokens the model generated.
            num_tokens: generated tokens of the whole mini-batch, over micro-batches and data-parallel ranks;
                by default those of this call.
            num_sequences: sequences with at least one generated token of the whole mini-batch, likewise.

        Returns:
            Loss to minimise, token losses and stats. With explicit counts the losses of the micro-batches add
            up to the loss of the whole mini-batch.

        Raises:
            ValueError: shapes, dtypes or mask values that do not fit; unusable tokens when `on_bad` is
            "raise".
        """
        checks.shapes(logps, old_logps, advantages, mask, logps.shape[0] if logps.ndim == 2 else None)
        if logps.ndim != 2:
            raise ValueError(f"logps: shape {tuple(logps.shape)}; expected [B, T].")
        checks.mask_values(mask)
        checks.warn_low_precision(logps, old_logps)
        return self.compose(logps, old_logps, advantages, mask, Padded(), num_tokens, num_sequences)

    def compose(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        layout: Layout,
        num_tokens: Count | None = None,
        num_sequences: Count | None = None,
    ) -> Output:
        """The definition: the four parts applied one after the other, differentiated by autograd."""
        tokens = sanitise(logps, old_logps, mask, layout)
        if self.on_bad == "raise":
            checks.unusable_tokens((tokens.mask & ~tokens.kept).sum())
        zero = torch.zeros((), dtype=tokens.logps.dtype, device=logps.device)
        # A masked or neutralised token may carry a NaN advantage, which would reach the gradient as 0·NaN.
        adv = torch.where(tokens.kept, layout.expand(advantages.detach()).to(zero.dtype), zero)
        limits = self.trust_region.limits(tokens, adv)
        weight = truncate(log_weight(self.ratio, tokens), limits, self.ratio.log_cap)
        terms = self.surrogate.terms(weight, adv, limits, tokens)
        token_loss = torch.where(tokens.kept, terms.loss, zero)
        factor = self.reduction.weights(tokens.mask, layout, num_tokens, num_sequences, zero.dtype)
        return Output((token_loss * factor).sum(), token_loss, summarise(tokens, weight, terms))
