"""Importance sampling correction for the difference between a rollout engine and the trainer.

An engine and a trainer disagree on the log-probs of the same policy, because of kernels, precision or staleness. If the
ratio is taken against the old policy as the trainer recomputes it, a separate weight corrects the difference. If it is
taken against the engine's log-probs, nothing is left to correct, and a product accumulates the difference.
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
from ctpo.objectives.tokens import sanitise
from ctpo.old_names import old_keywords

LEVELS: Final = ("token", "sequence")
MODES: Final = ("truncate", "reject")
ANCHORS: Final = ("old", "rollout")


@dataclass(frozen=True)
class Correction:
    """What a correction gives to an objective.

    Attributes:
        weights: factors of the token losses, the shape of the log-probs, without gradient. Pass them as `weights`.
        rejection_mask: true on tokens that were thrown out. Pass it as `rejection_mask`. These tokens leave the loss
            and its denominators, and stay in the response mask, so that positions and products do not change.
        stats: detached 0-d tensors. mismatch_k1 and mismatch_k3 estimate KL(rollout ‖ old) per token, in nats.
            truncated_fraction and rejected_fraction are shares of the tokens; weight_mean is the mean weight.
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
    """Importance weights w = Π π_old / π_rollout, truncated at a threshold, or rejected outside of an interval.

    With δ_t = log π_old − log π_rollout, w is e^{δ_t} at level "token" and e^{Σ δ_t} at level "sequence", the same at
    each of its tokens. "truncate" gives min(w, threshold), and every token counts. "reject" gives w within
    [floor, threshold]; tokens outside leave the loss and its denominators. A token with log-probs that are not finite,
    or with |δ| > 20, has δ = 0.

    Args:
        old_logps: [B, T] the trainer's log-probs of the policy that sampled, nats.
        rollout_logps: [B, T] the log-probs the engine reported, nats.
        response_mask: [B, T] true on tokens that the model sampled.
        level: "token" or "sequence".
        mode: "truncate" or "reject".
        threshold: upper bound of the weight, > 0; the CTPO recipe uses 5 at sequence level.
        floor: lower bound for "reject", in [0, threshold).
        layout: how the tokens form sequences; None is padded rows.

    Raises:
        ValueError: unknown level or mode, bounds out of range, or shapes that differ.

    Source: E. L. Ionides, "Truncated Importance Sampling", Journal of Computational and Graphical Statistics 17 (2008).
    Recipe: arXiv 2605.07331.
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
        # This keeps exp finite where no threshold does. Any threshold in use is far below e^20.
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
    """The log-probs against which the ratio is taken.

    "old" is the policy before this batch's updates, as the trainer recomputes it. The ratio is 1 at the first update,
    and `correct_rollout` corrects the difference to the engine. "rollout" is what the engine reports. That saves a
    forward pass and is the policy that sampled, but a product accumulates the difference of every token in the prefix.

    Raises:
        ValueError: unknown anchor, or its log-probs are missing.
    """
    checks.choice("anchor", anchor, ANCHORS)
    chosen = old_logps if anchor == "old" else rollout_logps
    if chosen is None:
        raise ValueError(f"anchor: {anchor!r} needs {anchor}_logps, which are None.")
    return chosen
