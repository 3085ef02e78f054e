"""Advantages by other estimators than TRL's, from the rewards that TRL has gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives import advantages as library

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Rewards [B], numbers of the prompts [B], and lengths [B] in tokens give advantages [B]."""

_ESTIMATORS: Final[dict[str, Estimator]] = {
    "rloo": lambda rewards, group, _: library.rloo(rewards, group),
    "maxrl": lambda rewards, group, _: library.max_rl(rewards, group),
    "opo": library.opo,
    "batch": lambda rewards, _, __: library.batch_normalised(rewards),
    "reinforce++": lambda rewards, _, lengths: library.reinforce_plus_plus(rewards, lengths),
    "reinforce++-baseline": library.reinforce_plus_plus_baseline,
}


def estimated(name: str, rewards: Tensor, weights: Tensor, group: int, lengths: Tensor) -> Tensor:
    """[B] the advantages of responses, which are 0 for a response that no reward function has judged.

    Args:
        name: one of `ADVANTAGES` in `ctpo.training.config.checks`, but not "trl".
        rewards: [B, K] of all processes, NaN where a reward function gave None. The groups lie one after the other.
        weights: [K] of the reward functions. A response's reward is the weighted sum of those that judged it.
        group: responses per prompt.
        lengths: [B] tokens that the model sampled.
    """
    # On the CPU there is float64, and looking at rewards costs nothing: MaxRL refuses negative ones.
    own, rewards, lengths = rewards, rewards.cpu().double(), lengths.cpu()
    total = total_rewards(rewards, weights)
    # A response without a reward must not count in any mean, so it takes no part at all.
    judged = (~total.isnan()).nonzero()[:, 0]
    prompts = torch.arange(len(total)) // group
    some = _ESTIMATORS[name](total[judged], prompts[judged], lengths[judged])
    return torch.zeros_like(total).index_put((judged,), some).to(own)


def total_rewards(rewards: Tensor, weights: Tensor) -> Tensor:
    """[B] the weighted sum of each response's rewards [B, K], on the CPU; NaN if no reward function has judged it."""
    rewards = rewards.cpu().double()
    total = (rewards * weights.to(rewards)).nansum(dim=1)
    return total.masked_fill(rewards.isnan().all(dim=1), torch.nan)
