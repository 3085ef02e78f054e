"""Correction for the mismatch between the engine that sampled and the trainer's own log-probs of the same
policy.

An inference engine and a trainer disagree on the log-probs of one and the same policy (kernels, precision,
staleness). With the ratio anchored at the trainer's recomputed old policy, that mismatch is corrected by a
separate weight; with the ratio anchored at the engine's log-probs there is nothing left to correct, and the
product accumulates the mismatch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.numerics import SATURATION
from ctpo.objectives.old_names import old_keywords
from ctpo.objectives.tokens import sanitise

LEVELS: Final = ("token", "sequence")
MODES: Final = ("truncate", "reject")
ANCHORS: Final = ("old", "rollout")


@dataclass(frozen=True)
class Correction:
    """What a correction hands to an objective.

    Attributes:
        weights: factors of the token losses, the shape of the log-probs, without gradient; pass as `weights`.
        rejection_mask: true on tokens that were thrown out; pass as `rejection_mask`. They leave the loss and its
            denominators and stay in the response mask, so that positions and products do not change.
        stats: mismatch_k1 and mismatch_k3 (KL(rollout ‖ old) estimates a token), truncated_fraction and
            rejected_fraction of the tokens, weight_mean; detached 0-d tensors.
    """

    weights: Tensor
    rejection_mask: Tensor
    stats: dict[str, Tensor]

    @property
    def loss_mask(self) -> Tensor:
        """The opposite of `rejection_mask`, under its old name."""
        warnings.warn("loss_mask goes in the next release; pass rejection_mask.", FutureWarning, stacklevel=2)
        return ~self.rejection_mask


@old_keywords(mask="response_mask")
@torch.no_grad()
def correct_rollout(
    old_logps: Tensor,
    rollout_logps: Tensor,
    response_mask: Tensor,
    *,
    level: str = "sequence",
    mode: str = "truncate",
    threshold: float = 5.0,
    floor: float = 0.0,
    layout: Layout | None = None,
) -> Correction:
    """Importance weights w = Π π_old / π_rollout, truncated at a threshold or rejected outside of [floor,
    threshold].

    token: w_t = e^{δ_t}; sequence: w = e^{Σ δ_t} at each token, with δ_t = log π_old − log π_rollout.
    truncate: min(w, threshold) and everything counts. reject: weight w inside of the interval, and tokens
        outside of
    it leave loss and denominators. Unusable tokens (non-finite, |δ| > 20) have δ = 0.

    Args:
        old_logps: [B, T] the trainer's log-probs of the policy that sampled, nats.
        rollout_logps: [B, T] the log-probs the engine reported, nats.
        response_mask: [B, T] true on tokens that the model sampled.
        level: "token" or "sequence".
        mode: "truncate" or "reject".
        threshold: upper bound of the weight, > 0; the CTPO recipe uses 5 at sequence level.
        floor: lower bound for "reject", in [0, threshold).
        layout: of packed or sharded tokens; padded rows by default.

    Returns:
        A `Correction`.

    Raises:
        ValueError: unknown level or mode, bounds out of range, shapes that differ.

    Source: truncated importance sampling, Ionides (2008); recipe: arXiv 2605.07331.
    """
    checks.choice("level", level, LEVELS)
    checks.choice("mode", mode, MODES)
    checks.number("threshold", threshold, 0.0, strict=True)
    if not 0 <= checks.number("floor", floor, 0.0) < threshold:
        raise ValueError(f"floor: {floor!r} must be below the threshold {threshold!r}.")
    for name, value in (("rollout_logps", rollout_logps), ("response_mask", response_mask)):
        if value.shape != old_logps.shape:
            raise ValueError(
                f"{name}: shape {tuple(value.shape)} differs from old_logps {tuple(old_logps.shape)}."
            )
    layout = Padded() if layout is None else layout
    tokens = sanitise(old_logps, rollout_logps, response_mask, layout)
    log_weight = tokens.log_ratio
    if level == "sequence":
        # Keeps exp finite where no threshold does; any threshold in use is far below e^20.
        total = layout.sequence_sum(log_weight).clamp(-SATURATION, SATURATION)
        log_weight = total.to(log_weight.dtype).expand_as(log_weight)
    weight = log_weight.exp()
    above, below = weight > threshold, weight < floor
    one = torch.ones_like(weight)
    n = layout.sum_shards(tokens.mask.sum()).clamp(min=1)

    def share(flags: Tensor) -> Tensor:
        return layout.sum_shards((flags & tokens.mask).sum()) / n

    def mean(values: Tensor) -> Tensor:
        return layout.sum_shards(torch.where(tokens.mask, values, torch.zeros_like(values)).sum()) / n

    rejected = tokens.mask & (above | below) if mode == "reject" else torch.zeros_like(tokens.mask)
    weight = torch.where(tokens.mask & ~rejected, weight.clamp(max=threshold), one)
    stats = {
        "mismatch_k1": -mean(tokens.log_ratio),
        "mismatch_k3": mean(tokens.log_ratio.expm1() - tokens.log_ratio),
        "truncated_fraction": share(above) if mode == "truncate" else share(above) * 0,
        "rejected_fraction": share(rejected),
        "weight_mean": mean(weight),
    }
    return Correction(weight, rejected, stats)


def anchor_logps(anchor: str, old_logps: Tensor | None, rollout_logps: Tensor | None) -> Tensor:
    """Log-probs the ratio is taken against.

    "old" is the policy before this batch's updates as the trainer recomputes it: the ratio is 1 at the first
    update, and engine mismatch needs `correct_rollout`. "rollout" is the engine's own report: one forward
    pass less and the true behaviour policy, but a product then also accumulates the mismatch of every token
    in the prefix.

    Raises:
        ValueError: unknown anchor, or its log-probs are missing.
    """
    checks.choice("anchor", anchor, ANCHORS)
    chosen = old_logps if anchor == "old" else rollout_logps
    if chosen is None:
        raise ValueError(f"anchor: {anchor!r} needs {anchor}_logps, which are None.")
    return chosen
