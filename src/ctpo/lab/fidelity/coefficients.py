"""What an objective does to each sampled token: the coefficient of ∇log π_t, by autograd of the objective itself."""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.lab.fidelity.samples import Samples
from ctpo.objectives import Objective, preset
from ctpo.objectives import advantages as library
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.tokens import turns_of
from ctpo.training.config.checks import TURN_ADVANTAGES
from ctpo.training.config.config import CTPOConfig
from ctpo.training.credit.estimators import estimated, total_rewards
from ctpo.training.credit.turns import spread, turn_advantages

ON_POLICY = "reinforce"
"""The preset whose gradient on a policy's own responses is the on-policy gradient: every weight is 1."""


def objective_of(objective: Objective, reduction: Reduction) -> Objective:
    """The objective with the reduction that all of a comparison share."""
    return dataclasses.replace(objective, reduction=reduction)


def on_policy(reduction: Reduction) -> Objective:
    """REINFORCE, with the reduction that all of a comparison share."""
    return objective_of(preset(ON_POLICY), reduction)


def coefficients(
    objective: Objective, logps: Tensor, samples: Samples, advantages: Tensor, batch: int
) -> Tensor:
    """[N, T] each token's k_t = −B ∂loss/∂log π_t, where one batch of B responses is one call of the objective.

    The gradient of a batch is then the mean over its responses of Σ_t k_t ∇log π_t.

    Args:
        objective: any objective.
        logps: [N, T] of the target.
        samples: of the behaviour policy, whose number is a multiple of `batch`.
        advantages: [N, T].
        batch: B.
    """
    out = torch.zeros(logps.shape, dtype=torch.float64)
    for first in range(0, len(samples), batch):
        rows = slice(first, first + batch)
        mask = samples.mask[rows]
        leaf = logps[rows].clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of log-probs above 0 by rounding
            result = objective(
                leaf,
                samples.logps[rows],
                advantages[rows],
                mask,
                turn_ids=turns_of(mask) if objective.needs_turns else None,
            )
        (gradient,) = torch.autograd.grad(result.loss, leaf)
        out[rows] = -batch * gradient.double()
    return torch.where(samples.mask, out, torch.zeros_like(out))


def recipe_advantages(samples: Samples, config: CTPOConfig) -> Tensor:
    """[N, T] the advantages that the recipe's estimator gives the responses.

    Raises:
        UserError: if it needs rewards per turn, and there are none.
    """
    group, weights = config.num_generations, reward_weights(samples, config)
    if config.advantages == "gae":
        raise UserError(
            "advantages=gae: a pair of policies has no critic; set advantages=trl, or another one without a critic"
        )
    if config.advantages in TURN_ADVANTAGES:
        if samples.turn_rewards.shape[1] == 0:
            raise UserError(
                f"advantages={config.advantages}: the task gives no rewards per turn; set advantages=trl, or take "
                "another task"
            )
        return turn_by_turn(samples, config)
    if config.advantages == "trl":
        values = library.several_rewards(
            samples.rewards,
            group,
            weights,
            aggregation=config.multi_objective_aggregation,
            scale=config.scale_rewards,
        )
    else:
        values = estimated(config.advantages, samples.rewards, weights, group, samples.sampled)
    return values[:, None].expand(samples.mask.shape).float()


def turn_by_turn(samples: Samples, config: CTPOConfig) -> Tensor:
    """[N, T] the advantages of single turns: the recipe's, or else each by its own reward in its group."""
    name = config.advantages if config.advantages in TURN_ADVANTAGES else "each-turn"
    turns = torch.where(samples.mask, samples.turns + 1, torch.zeros_like(samples.turns)).amax(dim=1)
    values = turn_advantages(
        samples.turn_rewards,
        turns.clamp(max=samples.turn_rewards.shape[1]),
        total_rewards(samples.rewards, reward_weights(samples, config)),
        config.num_generations,
        name=name,
        scale=config.scale_rewards,
    )
    return spread(values, samples.turns, samples.mask).float()


def reward_weights(samples: Samples, config: CTPOConfig) -> Tensor:
    """[R] the weights of the reward functions."""
    return torch.tensor(config.reward_weights or [1.0] * samples.rewards.shape[1], dtype=torch.float64)


def null_advantages(samples: Samples, size: float, seed: int, *, by_turn: bool) -> Tensor:
    """[N, T] advantages that know nothing: `size` times a normal number for each response, or for each turn."""
    generator = torch.Generator().manual_seed(seed)
    if not by_turn:
        return size * torch.randn(len(samples), 1, generator=generator).expand(samples.mask.shape)
    numbers = torch.randn(len(samples), int(samples.turns.max()) + 1, generator=generator)
    return size * numbers.gather(1, samples.turns)
