"""The objective: ratio × trust region × surrogate × reduction.

Shapes: B rows of T positions are [B, T]. N tokens of a packed batch are [N], and S is its number of segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.cpu.autograd import native_output, refuse
from ctpo.objectives.cpu.supported import objective_refusal
from ctpo.objectives.details import Details
from ctpo.objectives.inputs import Inputs
from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.layouts.packed import Packed, packed_from
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.layouts.sharded import SequenceShard, Sharded
from ctpo.objectives.numerics import compute_dtype
from ctpo.objectives.ratios import Ratio
from ctpo.objectives.reductions import Count, Reduction
from ctpo.objectives.reference import Output, compose, examine
from ctpo.objectives.surrogates import Surrogate
from ctpo.objectives.tokens import MISSING_TURNS, Tokens, as_bool, sanitise
from ctpo.objectives.trust_regions import TrustRegion
from ctpo.old_names import current_backend, old_keywords

BACKENDS: Final = ("auto", "native", "compose")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A policy objective, composed of four independent parts.

    loss = Σ_t factor_t · L_t, where L_t = surrogate(log weight_t, A_t, bounds_t) and the reduction gives factor_t.

    Example:
        objective = Objective(ratio=TokenRatio(), trust_region=RatioBand(0.2, 0.28), surrogate=MinClip())
        objective(logps, old_logps, advantages, response_mask).loss.backward()

    Attributes:
        ratio: which tokens' ratios are multiplied into the weight of a token.
        trust_region: the bounds at every token.
        surrogate: what a token's loss does with weight, advantage and bounds.
        reduction: what is summed and divided by what.
        on_bad: what to do with a token under the mask whose log-probs are not finite, or differ by more than 20 nats.
            "neutralise" takes its ratio as 1, gives it neither loss nor gradient, and counts it. "raise" refuses the
            batch, which reads a value from the device.
        backend: "auto" runs the C pass on calls that it can take (plain tensors on the CPU), and the definition on
            others. "native" refuses calls that the C pass cannot take. "compose" always runs the definition.
        row_wise: whether a sequence's loss depends on no other sequence, except through the denominators.
        needs_turns: whether a call needs `turn_ids`.
        idle_without_advantage: whether tokens with A = 0 have no gradient. A pull to the anchor gives them one.

    Raises:
        ValueError: unknown value of `on_bad` or `backend`, or "native" for parts that the C pass does not know.
    """

    ratio: Ratio
    trust_region: TrustRegion
    surrogate: Surrogate
    reduction: Reduction = field(default_factory=Reduction)
    on_bad: str = "neutralise"
    backend: str = "auto"
    row_wise: bool = field(init=False, repr=False, compare=False)
    needs_turns: bool = field(init=False, repr=False, compare=False)
    idle_without_advantage: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = (self.ratio, self.trust_region, self.surrogate)
        for name, marker, value in (
            ("row_wise", "batch_wide", False),
            ("needs_turns", "by_turn", True),
            ("idle_without_advantage", "pulls", False),
        ):
            present = any(_marked(part, marker) for part in parts)
            object.__setattr__(self, name, present is value)
        checks.choice("on_bad", self.on_bad, ("neutralise", "raise"))
        object.__setattr__(self, "backend", current_backend(self.backend, 4))
        checks.choice("backend", self.backend, BACKENDS)
        reason = objective_refusal(self.ratio, self.trust_region, self.surrogate)
        if self.backend == "native" and reason is not None:
            raise ValueError(f'backend: "native" cannot run this objective: {reason}; use backend="auto".')

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
        turn_ids: Tensor | None = None,
        details: bool = False,
    ) -> Output:
        """The loss of one micro-batch, its token losses and its statistics.

        Args:
            logps: [B, T] log π_θ of the sampled tokens, nats, with gradient; [N] if packed.
            old_logps: log-probs of the policy that the ratio is taken against, nats, the shape of logps. No gradient
                flows into them.
            advantages: [B] ([S] if packed) or the shape of logps; positive favours the sampled tokens. A packed [N]
                is one value per token, also if S = N.
            response_mask: the shape of logps, boolean or 0/1, true on tokens that the model sampled.
            num_tokens: the number of sampled tokens of the whole minibatch, over its micro-batches and data-parallel
                ranks. None counts those of this call, over all shards.
            num_sequences: the number of sequences of the whole minibatch with at least one sampled token, likewise.
            segment_ids: [N] integers in 0..S−1 that do not decrease. They make the call a packed one.
            cu_seqlens: [S + 1] cumulative segment lengths from 0 to N, instead of segment_ids.
            shard: where these tokens lie in sequences that a process group shares. The loss is then this rank's share.
            weights: [B] or the shape of logps, factors of the token losses, at least 0 (rollout correction).
            rejection_mask: the shape of logps, true on tokens that loss and denominators leave out (rollout
                correction). Products, means and positions still see them.
            turn_ids: the shape of logps, integers: the number of each token's turn. A turn ends where the number of a
                sampled token differs from that of the sampled token before it. Objectives that treat turns on their own
                need it (`needs_turns`), and others ignore it. See `turns_of`.
            details: also say what happened to each token, which runs the definition.

        Returns:
            The loss to minimise, the token losses and the statistics. If the counts are given, the losses of the
            micro-batches add up to the loss of the whole minibatch.

        Raises:
            ValueError: shapes, dtypes or mask values that do not fit, swapped log-probs, turns that are needed and not
                given, or unusable tokens if `on_bad` is "raise".
        """
        checks.packing(logps, segment_ids, cu_seqlens)
        per_sequence = logps.shape[:1] if logps.ndim == 2 else advantages.shape[:1]
        checks.batch(
            logps, old_logps, advantages, response_mask, tuple(per_sequence), weights, rejection_mask
        )
        self._check_turns(turn_ids, logps)
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
            turn_ids=turn_ids,
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
        tokens, signal = _tokens(inputs, layout, counted, self.needs_turns)
        return compose(self.ratio, self.trust_region, self.surrogate, tokens, signal, factor, details)

    def _check_turns(self, turn_ids: Tensor | None, logps: Tensor) -> None:
        if turn_ids is not None:
            checks.turns(turn_ids, tuple(logps.shape))
        elif self.needs_turns:
            raise ValueError(MISSING_TURNS)

    @old_keywords(mask="response_mask")
    @torch.no_grad()
    def examine(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        turn_ids: Tensor | None = None,
    ) -> Details:
        """What a call would do to each token of padded rows. Cheaper than a call, as it has no loss and no statistics.

        Args:
            logps, old_logps, advantages, response_mask, turn_ids: as in the call, [B, T].

        Raises:
            ValueError: shapes, dtypes or mask values that do not fit.
        """
        checks.batch(logps, old_logps, advantages, response_mask, tuple(logps.shape[:1]))
        self._check_turns(turn_ids, logps)
        inputs = Inputs(
            logps=logps,
            old_logps=old_logps,
            advantages=advantages,
            response_mask=response_mask,
            turn_ids=turn_ids,
        )
        tokens, signal = _tokens(inputs, Padded(), as_bool(response_mask), self.needs_turns)
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
        """The sum of values per token, reduced as the loss is. Values outside the mask may be anything.

        Args:
            values: [B, T], or the shape the layout expects.
            response_mask: the same shape, true where a token counts.
            num_tokens, num_sequences: totals of the whole minibatch, as in the call.
            layout: how the tokens form sequences; None is padded rows.

        Returns:
            A 0-d tensor, with the gradient of the values.
        """
        layout = Padded() if layout is None else layout
        factor = self.reduction.factors(
            response_mask, layout, num_tokens, num_sequences, compute_dtype(values)
        )
        return (torch.where(as_bool(response_mask), values, torch.zeros_like(values)) * factor).sum()


def _tokens(inputs: Inputs, layout: Layout, counted: Tensor, by_turn: bool) -> tuple[Tokens, Tensor]:
    """The tokens of a call, and the advantage times the weight of each token, 0 where the loss does not count it.

    Args:
        inputs: the call's arguments.
        layout: how the tokens form sequences.
        counted: tokens under the mask that were not rejected.
        by_turn: whether the turns are needed.
    """
    mask = as_bool(inputs.response_mask)
    tokens = sanitise(inputs.logps, inputs.old_logps, mask, layout)
    dtype, counted = tokens.logps.dtype, tokens.kept & counted
    zero, one = tokens.logps.new_zeros(()), tokens.logps.new_ones(())
    advantages = layout.expand(inputs.advantages.detach()).to(dtype)
    weights = one if inputs.weights is None else layout.expand(inputs.weights.detach()).to(dtype)
    # A masked or neutralised token may carry a NaN advantage, which would reach the gradient as 0·NaN.
    signal = torch.where(counted, advantages if inputs.weights is None else advantages * weights, zero)
    tokens = replace(
        tokens,
        advantages=torch.where(tokens.kept, advantages, zero),
        weights=torch.where(counted, weights, zero),
        turns=layout.turns(inputs.turn_ids, mask) if by_turn and inputs.turn_ids is not None else None,
    )
    return tokens, signal


def _marked(part: object, marker: str) -> bool:
    """Whether a part of an objective, or a part inside of it, has a class attribute of that name that is true."""
    if not is_dataclass(part):
        return False
    return getattr(type(part), marker, False) is True or any(
        _marked(getattr(part, each.name), marker) for each in fields(part)
    )


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
                "cu_seqlens: a shard of packed tokens needs segment_ids, one for each local token."
            )
        return packed_from(cu_seqlens, length, segments)
    assert segment_ids is not None
    checks.segment_ids(segment_ids, length, segments, shard is None)
    return Packed(segment_ids) if shard is None else Sharded(shard, length, logps.device, segment_ids)
