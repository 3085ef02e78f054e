"""The objective: ratio × trust region × surrogate × reduction, and what one call returns.

Shape legend: B rows, T positions, N tokens of a packed stream, S segments. `Objective.compose` is the
definition; the fused path must equal it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.cpu.autograd import native_output, refuse
from ctpo.objectives.details import Details
from ctpo.objectives.inputs import Inputs
from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.layouts.packed import Packed, packed_from
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.layouts.sharded import SequenceShard, Sharded
from ctpo.objectives.numerics import compute_dtype
from ctpo.objectives.old_names import current_backend, old_keywords
from ctpo.objectives.ratios import Ratio
from ctpo.objectives.reductions import Count, Reduction
from ctpo.objectives.reference import Output, compose, examine
from ctpo.objectives.surrogates import Surrogate
from ctpo.objectives.tokens import as_bool, sanitise
from ctpo.objectives.trust_regions import TrustRegion

BACKENDS: Final = ("auto", "native", "compose")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A policy objective composed of four independent parts.

    loss = Σ_t factor_t · L_t, L_t = surrogate(log ratio_t, A_t, region_t), factor_t from the reduction.

    Attributes:
        ratio: which tokens' ratios are multiplied.
        trust_region: log-space limits at every token.
        surrogate: what a token's loss does with weight, advantage and limits.
        reduction: what is summed and divided by what.
        on_bad: "neutralise" treats a token under the mask with non-finite log-probs, or with |log ratio| >
            20, as ratio 1 without loss or gradient, and counts it; "raise" refuses the batch (reads a value
            from the device).
        backend: "auto" takes the C pass for plain tensors on the CPU where the objective has one and it could be
            built, "native" refuses where "auto" would not take it, "compose" always runs the definition.
    """

    ratio: Ratio
    trust_region: TrustRegion
    surrogate: Surrogate
    reduction: Reduction = field(default_factory=Reduction)
    on_bad: str = "neutralise"
    backend: str = "auto"

    def __post_init__(self) -> None:
        checks.choice("on_bad", self.on_bad, ("neutralise", "raise"))
        object.__setattr__(self, "backend", current_backend(self.backend))
        checks.choice("backend", self.backend, BACKENDS)

    @old_keywords(mask="response_mask", loss_mask="rejection_mask")
    def __call__(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        *,
        num_tokens: Count | None = None,
        num_sequences: Count | None = None,
        segment_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        shard: SequenceShard | None = None,
        weights: Tensor | None = None,
        rejection_mask: Tensor | None = None,
        details: bool = False,
    ) -> Output:
        """Loss of one micro-batch.

        Args:
            logps: [B, T] log π_θ of the sampled tokens, nats, with gradient; [N] for a packed stream.
            old_logps: log-probs of the anchor of the ratio, nats, the shape of logps; no gradient flows into
                them.
            advantages: [B] (packed: [S]) or the shape of logps; positive favours the sampled tokens. A packed
                [N] is per token, also when S = N.
            response_mask: the shape of logps, boolean or 0/1, true on tokens that the model sampled.
            num_tokens: generated tokens of the whole mini-batch, over micro-batches and data-parallel ranks;
                by default those of this call (of all shards).
            num_sequences: sequences with at least one generated token of the whole mini-batch, likewise.
            segment_ids: [N] non-decreasing integers in 0..S−1; makes the call packed.
            cu_seqlens: [S + 1] cumulative segment lengths from 0 to N, instead of segment_ids.
            shard: where these tokens sit in sequences shared by a process group; the loss is then this rank's
                share.
            weights: [B] or the shape of logps, non-negative factors of the token losses (rollout correction).
            rejection_mask: the shape of logps, true on tokens that loss and denominators leave out (rollout
                correction). Products, means and positions still see them.
            details: also return per-token details (takes the composed path).

        Returns:
            Loss to minimise, token losses and stats. With explicit counts the losses of the micro-batches add
            up to the loss of the whole mini-batch.

        Raises:
            ValueError: shapes, dtypes or mask values that do not fit; unusable tokens when `on_bad` is
            "raise".
        """
        checks.packing(logps, segment_ids, cu_seqlens)
        per_sequence = logps.shape[:1] if logps.ndim == 2 else advantages.shape[:1]
        checks.batch(
            logps, old_logps, advantages, response_mask, tuple(per_sequence), weights, rejection_mask
        )
        inputs = Inputs(
            logps=logps,
            old_logps=old_logps,
            advantages=advantages,
            response_mask=response_mask,
            rejection_mask=rejection_mask,
            weights=weights,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
            segment_ids=segment_ids,
            cu_seqlens=cu_seqlens,
        )
        out = None
        parts = (self.ratio, self.trust_region, self.surrogate)
        if self.backend == "native":
            refuse(*parts, inputs, details, shard is not None)
        if self.backend != "compose" and shard is None and not details:
            out = native_output(*parts, self.reduction, inputs, self._definition)
        if out is None:
            out = self._definition(inputs, shard, details)
        checks.warn_positive(out.stats["positive_logps"])
        if self.on_bad == "raise":
            checks.unusable_tokens(out.stats["neutralised"])
        return out

    def _definition(
        self, inputs: Inputs, shard: SequenceShard | None = None, details: bool = False
    ) -> Output:
        """The output of a call by the definition: every part applied in torch, one after the other."""
        layout = _layout(inputs, shard)
        mask = as_bool(inputs.response_mask)
        counted = mask if inputs.rejection_mask is None else mask & ~as_bool(inputs.rejection_mask)
        dtype = compute_dtype(inputs.logps, inputs.old_logps)
        factor = self.reduction.factors(counted, layout, inputs.num_tokens, inputs.num_sequences, dtype)
        signal = layout.expand(inputs.advantages.detach()).to(dtype)
        if inputs.weights is not None:
            signal = signal * layout.expand(inputs.weights.detach()).to(dtype)
        tokens = sanitise(inputs.logps, inputs.old_logps, mask, layout)
        # A masked or neutralised token may carry a NaN advantage, which would reach the gradient as 0·NaN.
        signal = torch.where(tokens.kept & counted, signal, torch.zeros_like(signal))
        return compose(self.ratio, self.trust_region, self.surrogate, tokens, signal, factor, details)

    @old_keywords(mask="response_mask")
    @torch.no_grad()
    def examine(self, logps: Tensor, old_logps: Tensor, advantages: Tensor, response_mask: Tensor) -> Details:
        """What a call would do to each token of padded rows, without loss and statistics: `details=True` for less.

        Args:
            logps, old_logps, advantages, response_mask: as in the call, [B, T].

        Raises:
            ValueError: shapes, dtypes or mask values that do not fit.
        """
        checks.batch(logps, old_logps, advantages, response_mask, tuple(logps.shape[:1]))
        tokens = sanitise(logps, old_logps, response_mask, Padded())
        signal = Padded().expand(advantages).to(tokens.logps.dtype)
        signal = torch.where(tokens.kept, signal, torch.zeros_like(signal))
        return examine(self.ratio, self.trust_region, self.surrogate, tokens, signal)

    @old_keywords(mask="response_mask")
    def reduce(
        self,
        values: Tensor,
        response_mask: Tensor,
        *,
        num_tokens: Count | None = None,
        num_sequences: Count | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        """Reduce per-token values as the loss is reduced; masked values may be anything.

        Args:
            values: [B, T], or the shape the layout expects.
            response_mask: the same shape, true where a token counts.
            num_tokens, num_sequences: totals of the whole mini-batch, as in the call.
            layout: of packed or sharded tokens; padded rows by default.

        Returns:
            Scalar.
        """
        layout = Padded() if layout is None else layout
        factor = self.reduction.factors(
            response_mask, layout, num_tokens, num_sequences, compute_dtype(values)
        )
        return (torch.where(as_bool(response_mask), values, torch.zeros_like(values)) * factor).sum()


def _layout(inputs: Inputs, shard: SequenceShard | None) -> Layout:
    """The layout of a call's tokens, after a check of its segments."""
    logps, advantages = inputs.logps, inputs.advantages
    segment_ids, cu_seqlens = inputs.segment_ids, inputs.cu_seqlens
    length = logps.shape[-1]
    if logps.ndim == 2:
        return Padded() if shard is None else Sharded(shard, length, logps.device)
    segments = None if advantages.shape == logps.shape else advantages.shape[0]
    if cu_seqlens is not None:
        if shard is not None:
            raise ValueError(
                "cu_seqlens: a shard of a packed stream needs segment_ids, one for each local token."
            )
        return packed_from(cu_seqlens, length, segments)
    assert segment_ids is not None
    checks.segment_ids(segment_ids, length, segments, shard is None)
    return Packed(segment_ids) if shard is None else Sharded(shard, length, logps.device, segment_ids)
