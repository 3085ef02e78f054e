"""The weights of the penalty on the divergence from the reference model, as TRL's `use_bias_correction_kl` has them."""

from __future__ import annotations

from torch import Tensor

from ctpo.objectives import Objective
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.ratios import SequenceMeanRatio
from ctpo.objectives.tokens import sanitise


def kl_weights(objective: Objective, logps: Tensor, anchor_logps: Tensor, mask: Tensor) -> Tensor:
    """[B, T] or [B, 1] π_θ/π_old, with gradient, by which the estimates of the divergence are multiplied.

    It is the ratio of the token. If the objective's own ratio is the mean of the response (GSPO), it is that one, as
    TRL has it with `importance_sampling_level="sequence"`. A token with unusable log-probs has a ratio of 1.

    Args:
        objective: in training.
        logps, anchor_logps: [B, T] under the model in training, and of the anchor, nats.
        mask: [B, T] true on tokens that the model sampled.
    """
    tokens = sanitise(logps, anchor_logps, mask, Padded())
    if isinstance(objective.ratio, SequenceMeanRatio):
        return objective.ratio.statistic(tokens).to(tokens.log_ratio.dtype).exp()
    return tokens.log_ratio.exp()
