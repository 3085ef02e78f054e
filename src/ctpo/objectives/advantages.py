"""Advantages: how much better a response did than expected.

B responses of T tokens. Rewards [B] give advantages [B]. Rewards per token [B, T] are summed over the response mask to
the return R of their response; they give advantages [B, T], equal at each token of a response and 0 elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctpo.objectives.numerics import compute_dtype
from ctpo.old_names import old_keywords


def _returns(rewards: Tensor, mask: Tensor | None) -> Tensor:
    rewards = rewards.detach().to(compute_dtype(rewards))
    if rewards.ndim == 1:
        return rewards
    if rewards.ndim != 2 or mask is None or mask.shape != rewards.shape:
        raise ValueError(
            f"rewards: shape {tuple(rewards.shape)}; expected [B], or [B, T] with a response_mask of that shape."
        )
    return torch.where(mask != 0, rewards, torch.zeros_like(rewards)).sum(-1)


def _spread(advantages: Tensor, mask: Tensor | None, rewards: Tensor) -> Tensor:
    if rewards.ndim == 1 or mask is None:
        return advantages
    return torch.where(mask != 0, advantages.unsqueeze(-1), torch.zeros_like(advantages).unsqueeze(-1))


class _Groups:
    """Groups of responses to one prompt, and sums over them."""

    def __init__(self, group: Tensor | int, responses: int, device: torch.device) -> None:
        if isinstance(group, int):
            if group < 1 or responses % group:
                raise ValueError(
                    f"group: {group} does not divide {responses} responses; pass a [B] tensor of ids."
                )
            group = torch.arange(responses, device=device) // group
        if group.shape != (responses,) or group.is_floating_point():
            raise ValueError(
                f"group: {group.dtype} {tuple(group.shape)}; expected [{responses}] integer ids."
            )
        # Ids may be any integers. Numbered anew, they are below B.
        self.ids = torch.unique(group, return_inverse=True)[1]
        self.responses = responses

    def sum(self, values: Tensor) -> Tensor:
        """[B] the sum over each response's group."""
        return values.new_zeros(self.responses).index_add(0, self.ids, values)[self.ids]

    def equal(self, values: Tensor) -> Tensor:
        """[B] true where all values of the response's group are equal."""
        low = values.new_full((self.responses,), torch.inf).scatter_reduce(0, self.ids, values, "amin")
        high = values.new_full((self.responses,), -torch.inf).scatter_reduce(0, self.ids, values, "amax")
        return (low == high)[self.ids]


@old_keywords(mask="response_mask")
def group_normalised(
    rewards: Tensor, group: Tensor | int, *, response_mask: Tensor | None = None, normalise_std: bool = True
) -> Tensor:
    """A_i = (R_i − mean R) / std R, over the group of responses to one prompt.

    std is the sample standard deviation. A group whose rewards are all equal gives exact zeros, and so does a group of
    one. There is no epsilon.

    Args:
        rewards: [B], or [B, T] with `response_mask`.
        group: [B] integer ids of the prompts, or the number of consecutive responses to each.
        response_mask: [B, T] true on sampled tokens, for rewards per token.
        normalise_std: False leaves out the division, as Dr.GRPO does.

    Returns:
        [B] or [B, T], positive where a response did better than its group.

    Raises:
        ValueError: shapes that do not fit.

    Source: "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models" (GRPO), arXiv
    2402.03300, section 4.1.2.
    """
    returns = _returns(rewards, response_mask)
    groups = _Groups(group, returns.shape[0], returns.device)
    count = groups.sum(torch.ones_like(returns))
    centred = returns - groups.sum(returns) / count
    if normalise_std:
        variance = groups.sum(centred.square()) / (count - 1)
        # NaN in a group of one, and 0 where squares of tiny differences underflow.
        centred = centred / torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
    # Equal rewards need not have exactly that mean in floating point.
    return _spread(
        torch.where(groups.equal(returns), torch.zeros_like(centred), centred), response_mask, rewards
    )


@old_keywords(mask="response_mask")
def dr_grpo(rewards: Tensor, group: Tensor | int, *, response_mask: Tensor | None = None) -> Tensor:
    """A_i = R_i − mean R, over the group of responses to one prompt.

    Arguments and shapes as in `group_normalised`. Source: "Understanding R1-Zero-Like Training: A Critical Perspective"
    (Dr. GRPO), arXiv 2503.20783, section 3.2.
    """
    return group_normalised(rewards, group, response_mask=response_mask, normalise_std=False)


@old_keywords(mask="response_mask")
def rloo(rewards: Tensor, group: Tensor | int, *, response_mask: Tensor | None = None) -> Tensor:
    """A_i = R_i − the mean R of the other n − 1 responses = n/(n − 1) · (R_i − mean R); 0 for a group of one.

    Arguments and shapes as in `group_normalised`. Source: "Back to Basics: Revisiting REINFORCE Style Optimization for
    Learning from Human Feedback in LLMs" (RLOO), arXiv 2402.14740.
    """
    returns = _returns(rewards, response_mask)
    groups = _Groups(group, returns.shape[0], returns.device)
    count = groups.sum(torch.ones_like(returns))
    centred = (returns - groups.sum(returns) / count) * count / (count - 1)
    return _spread(
        torch.where(groups.equal(returns), torch.zeros_like(centred), centred), response_mask, rewards
    )


@old_keywords(mask="response_mask")
def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, *, discount: float = 1.0, trace: float = 1.0
) -> Tensor:
    """A_t = Σ_{k≥0} (γλ)^k δ_{t+k}, where δ_t = r_t + γ V_{t+1} − V_t and V is 0 past the last sampled token.

    Tokens outside the response mask are skipped, as if they were not there.

    Args:
        rewards: [B] for a reward at the last sampled token, or [B, T] per token.
        values: [B, T] the returns predicted from each token's state.
        response_mask: [B, T] true on sampled tokens.
        discount: γ in [0, 1].
        trace: λ in [0, 1].

    Returns:
        [B, T], 0 outside the mask, without gradient.

    Raises:
        ValueError: shapes that do not fit, or factors out of range.

    Source: "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv 1506.02438, equation 16.
    """
    if values.ndim != 2 or values.shape != response_mask.shape:
        raise ValueError(
            f"values: shape {tuple(values.shape)} differs from response_mask {tuple(response_mask.shape)}; "
            "expected [B, T] of both."
        )
    for name, factor in (("discount", discount), ("trace", trace)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name}: {factor!r} must lie in [0, 1].")
    mask = response_mask != 0
    zero = torch.zeros((), dtype=compute_dtype(values, rewards), device=values.device)
    values = torch.where(mask, values.detach().to(zero.dtype), zero)
    left = mask.flip(-1).cumsum(-1).flip(-1)  # generated tokens from here on
    if rewards.ndim == 1:
        rewards = rewards.unsqueeze(-1).expand_as(values) * 1.0
        rewards = torch.where(left == 1, rewards, torch.zeros_like(rewards))
    elif rewards.shape != values.shape:
        raise ValueError(f"rewards: shape {tuple(rewards.shape)}; expected [B] or {tuple(values.shape)}.")
    rewards = torch.where(mask, rewards.detach().to(zero.dtype), zero)
    one = torch.ones_like(zero)
    following = _scan_back(values, torch.where(mask, zero, one), strict=True)
    deltas = torch.where(mask, rewards + discount * following - values, zero)
    return torch.where(mask, _scan_back(deltas, torch.where(mask, one * discount * trace, one)), zero)


def _scan_back(add: Tensor, carry: Tensor, *, strict: bool = False) -> Tensor:
    """y_t = add_t + carry_t · y_{t+1}, in log2 T doublings; y_{t+1} instead if `strict`."""
    total, factor, step = add, carry, 1
    while step < add.shape[-1]:
        later = torch.nn.functional.pad(total[..., step:], (0, step))
        decay = torch.nn.functional.pad(factor[..., step:], (0, step))
        total, factor, step = total + factor * later, factor * decay, step * 2
    return torch.nn.functional.pad(total[..., 1:], (0, 1)) if strict and add.shape[-1] else total
