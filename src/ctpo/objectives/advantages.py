"""Advantages: how much better a response did than expected.

B responses of T tokens. Rewards [B] give advantages [B]. Rewards per token [B, T] are summed over the response mask to
the return R of their response; they give advantages [B, T], equal at each token of a response and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.layouts.recurrence import linear_recurrence
from ctpo.objectives.numerics import compute_dtype, reads_are_free
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

    Example:
        group_normalised(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)  # [1.5, -0.5, -0.5, -0.5]
    """
    returns = _returns(rewards, response_mask)
    groups = _Groups(group, returns.shape[0], returns.device)
    count = groups.sum(torch.ones_like(returns))
    centred = returns - groups.sum(returns) / count
    if normalise_std:
        variance = groups.sum(centred.square()) / (count - 1)
        # NaN in a group of one, and 0 where squares of tiny differences underflow.
        centred = centred / torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
    return _spread(_zero_where_equal(centred, returns, groups), response_mask, rewards)


@old_keywords(mask="response_mask")
def dr_grpo(rewards: Tensor, group: Tensor | int, *, response_mask: Tensor | None = None) -> Tensor:
    """A_i = R_i − mean R, over the group of responses to one prompt.

    Arguments and shapes as in `group_normalised`. Source: "Understanding R1-Zero-Like Training: A Critical Perspective"
    (Dr. GRPO), arXiv 2503.20783, section 3.2.

    Example:
        dr_grpo(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)  # [0.75, -0.25, -0.25, -0.25]
    """
    return group_normalised(rewards, group, response_mask=response_mask, normalise_std=False)


@old_keywords(mask="response_mask")
def rloo(rewards: Tensor, group: Tensor | int, *, response_mask: Tensor | None = None) -> Tensor:
    """A_i = R_i − the mean R of the other n − 1 responses = n/(n − 1) · (R_i − mean R); 0 for a group of one.

    Arguments and shapes as in `group_normalised`. Source: "Back to Basics: Revisiting REINFORCE Style Optimization for
    Learning from Human Feedback in LLMs" (RLOO), arXiv 2402.14740.

    Example:
        rloo(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)  # [1.0, -0.33, -0.33, -0.33]
    """
    returns = _returns(rewards, response_mask)
    groups = _Groups(group, returns.shape[0], returns.device)
    count = groups.sum(torch.ones_like(returns))
    centred = (returns - groups.sum(returns) / count) * count / (count - 1)
    return _spread(_zero_where_equal(centred, returns, groups), response_mask, rewards)


def max_rl(rewards: Tensor, group: Tensor | int, *, response_mask: Tensor | None = None) -> Tensor:
    """A_i = (R_i − mean R) / mean R, over the group of responses to one prompt; 0 where mean R is 0.

    Rewards must not be negative. With rewards of 0 and 1 a prompt weighs the more, the more rarely it is solved: in
    expectation the gradient is that of log p, with p the share of right responses, instead of that of p.

    Arguments and shapes as in `group_normalised`.

    Raises:
        ValueError: shapes that do not fit, or a negative return. Looked at where reading is free.

    Source: "Maximum Likelihood Reinforcement Learning" (MaxRL), arXiv 2602.02710.

    Example:
        max_rl(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)  # [3.0, -1.0, -1.0, -1.0]
    """
    returns = _returns(rewards, response_mask)
    if reads_are_free(returns) and bool((returns < 0).any()):
        lowest = returns.min().item()
        raise ValueError(
            f"rewards: {lowest:g} is negative; MaxRL divides by the mean, so use rewards from 0 up."
        )
    groups = _Groups(group, returns.shape[0], returns.device)
    mean = groups.sum(returns) / groups.sum(torch.ones_like(returns))
    centred = (returns - mean) / torch.where(mean > 0, mean, torch.ones_like(mean))
    return _spread(_zero_where_equal(centred, returns, groups), response_mask, rewards)


def opo(
    rewards: Tensor,
    group: Tensor | int,
    lengths: Tensor | None = None,
    *,
    response_mask: Tensor | None = None,
) -> Tensor:
    """A_i = R_i − Σ_j T_j R_j / Σ_j T_j, over the group of responses to one prompt; T_j is the length of response j.

    The baseline of least variance, if the squared norm of a response's gradient grows with its length.

    Args:
        rewards, group, response_mask: as in `group_normalised`.
        lengths: [B] T_j in sampled tokens; None counts the response mask. Empty responses have no weight.

    Raises:
        ValueError: shapes that do not fit, or neither lengths nor a mask.

    Source: "On-Policy RL with Optimal Reward Baseline" (OPO), arXiv 2505.23585.

    Example:
        opo(torch.tensor([1.0, 0.0]), 2, torch.tensor([30, 10]))  # [0.25, -0.75]
    """
    returns = _returns(rewards, response_mask)
    groups = _Groups(group, returns.shape[0], returns.device)
    weights = _lengths(lengths, response_mask, returns)
    total = groups.sum(weights)
    baseline = groups.sum(weights * returns) / torch.where(total > 0, total, torch.ones_like(total))
    return _spread(_zero_where_equal(returns - baseline, returns, groups), response_mask, rewards)


def batch_normalised(
    rewards: Tensor, lengths: Tensor | None = None, *, response_mask: Tensor | None = None
) -> Tensor:
    """A_i = (R_i − mean R) / std R, over all responses of the batch. std is the sample standard deviation.

    With lengths, mean and variance are those of the tokens: response i counts T_i times. Equal rewards give exact
    zeros.

    Args:
        rewards: [B], or [B, T] with `response_mask`.
        lengths: [B] T_i in sampled tokens; None lets every response count once.
        response_mask: [B, T] true on sampled tokens, for rewards per token.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        batch_normalised(torch.tensor([1.0, 0.0, 0.0, 0.0]))  # [1.5, -0.5, -0.5, -0.5]
    """
    returns = _returns(rewards, response_mask)
    weights = torch.ones_like(returns) if lengths is None else _lengths(lengths, None, returns)
    return _spread(_whitened(returns, weights), response_mask, rewards)


def reinforce_plus_plus(
    rewards: Tensor, lengths: Tensor | None = None, *, response_mask: Tensor | None = None
) -> Tensor:
    """A_i = (R_i − mean R) / std R, where mean and std are those of all tokens of the batch.

    The reward of a response is the return of each of its tokens, as with a discount of 1. `batch_normalised` with
    lengths. Arguments as in `opo`, without groups.

    Source: "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization", arXiv
    2501.03262.

    Example:
        reinforce_plus_plus(torch.tensor([1.0, 0.0]), torch.tensor([10, 10]))  # [0.97, -0.97]
    """
    returns = _returns(rewards, response_mask)
    weights = _lengths(lengths, response_mask, returns)
    return _spread(_whitened(returns, weights), response_mask, rewards)


def reinforce_plus_plus_baseline(
    rewards: Tensor,
    group: Tensor | int,
    lengths: Tensor | None = None,
    *,
    response_mask: Tensor | None = None,
) -> Tensor:
    """`reinforce_plus_plus` of R_i − mean R, the mean over the group of responses to one prompt.

    Arguments as in `opo`. Source: as `reinforce_plus_plus`.

    Example:
        reinforce_plus_plus_baseline(torch.tensor([1.0, 0.0]), 2, torch.tensor([10, 10]))  # [0.97, -0.97]
    """
    returns = _returns(rewards, response_mask)
    groups = _Groups(group, returns.shape[0], returns.device)
    centred = returns - groups.sum(returns) / groups.sum(torch.ones_like(returns))
    centred = _zero_where_equal(centred, returns, groups)
    return _spread(_whitened(centred, _lengths(lengths, response_mask, returns)), response_mask, rewards)


def several_rewards(
    rewards: Tensor,
    group: Tensor | int,
    weights: Tensor | None = None,
    *,
    aggregation: str = "sum_then_normalize",
    scale: str = "group",
    epsilon: float = 1e-4,
) -> Tensor:
    """[B] advantages of several rewards per response, as TRL aggregates them.

    "sum_then_normalize": R_i = Σ_k w_k r_ik, A_i = (R_i − mean R) / (std R + ε). The mean is the group's. std is the
    group's ("group"), the batch's ("batch"), or left out ("none").

    "normalize_then_sum" (GDPO): each reward is normalised in its group first, R_i = Σ_k w_k (r_ik − mean r_k) /
    (std r_k + ε), and R over the batch then, whatever the scale. So a reward with a small spread is not drowned.

    Args:
        rewards: [B, K]; NaN where a reward function has not judged a response. Such a reward adds nothing and counts in
            no mean. A response without any reward has the advantage 0.
        group: as in `group_normalised`.
        weights: [K]; None for 1.
        aggregation: "sum_then_normalize" or "normalize_then_sum".
        scale: "group", "batch" or "none".
        epsilon: TRL's, so that equal rewards give 0.

    Raises:
        ValueError: unknown names, or shapes that do not fit.

    Source: "GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization", arXiv
    2601.05242; TRL's `multi_objective_aggregation`.

    Example:
        several_rewards(torch.tensor([[1.0, 0.2], [0.0, 0.4]]), 2)  # [0.71, -0.71]
    """
    checks.choice("aggregation", aggregation, ("sum_then_normalize", "normalize_then_sum"))
    checks.choice("scale", scale, ("group", "batch", "none"))
    if rewards.ndim != 2 or (weights is not None and weights.shape != rewards.shape[1:]):
        shape = None if weights is None else tuple(weights.shape)
        raise ValueError(f"rewards, weights: {tuple(rewards.shape)} and {shape}; expected [B, K] and [K].")
    rewards = rewards.detach().to(compute_dtype(rewards))
    groups = _Groups(group, rewards.shape[0], rewards.device)
    factors = torch.ones_like(rewards[0]) if weights is None else weights.to(rewards)
    unjudged = rewards.isnan().all(dim=1)
    if aggregation == "normalize_then_sum":
        columns = [_standardised(column, groups, groups, epsilon) for column in rewards.unbind(1)]
        rewards = torch.stack(columns, dim=1)
    total = (rewards * factors).nansum(dim=1).masked_fill(unjudged, torch.nan)
    everyone = _Groups(len(total), len(total), total.device) if len(total) else groups
    if aggregation == "normalize_then_sum":
        advantages = _standardised(total, everyone, everyone, epsilon)
    else:
        spread = {"group": groups, "batch": everyone, "none": None}[scale]
        advantages = _standardised(total, groups, spread, epsilon)
    return advantages.nan_to_num(nan=0.0)


def returns_to_go(rewards: Tensor, turns: Tensor, *, discount: float = 1.0) -> Tensor:
    """G_k = r_k + γ r_{k+1} + γ² r_{k+2} + …, the return of each turn of a conversation from that turn on.

    Args:
        rewards: [B, K] the reward of each turn; entries past a response's last turn are ignored.
        turns: [B] how many turns each response has.
        discount: γ in [0, 1], per turn.

    Returns:
        [B, K]. Past its last turn a response keeps the return of that turn, so that it can be compared with responses
        that have more turns. It is 0 for a response without turns.

    Raises:
        ValueError: shapes that do not fit, or a discount out of range.

    Example:
        returns_to_go(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([3]), discount=0.5)  # [[0.25, 0.5, 1.0]]
    """
    if rewards.ndim != 2 or turns.shape != rewards.shape[:1]:
        raise ValueError(
            f"rewards, turns: {tuple(rewards.shape)}, {tuple(turns.shape)}; expected [B, K], [B]."
        )
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: {discount!r} must lie in [0, 1].")
    within = torch.arange(rewards.shape[1], device=rewards.device) < turns.unsqueeze(-1)
    rewards = rewards.detach().to(compute_dtype(rewards))
    rewards = torch.where(within, rewards, torch.zeros_like(rewards))
    returns = _scan_back(rewards, torch.full_like(rewards, discount))
    last = returns.gather(1, (turns - 1).clamp(min=0).unsqueeze(-1)) if rewards.shape[1] else returns
    return torch.where(within, returns, last)


def by_turn(
    rewards: Tensor,
    turns: Tensor,
    group: Tensor | int,
    *,
    discount: float = 1.0,
    estimator: Callable[[Tensor, Tensor | int], Tensor] = group_normalised,
) -> Tensor:
    """A_ik = (G_ik − mean_j G_jk) / std_j G_jk, the advantage of each turn k of a response i.

    G_ik = Σ_{l ≥ k} γ^{l−k} r_il is the return from turn k on (`returns_to_go`). Mean and standard deviation are over
    the group of responses j to one prompt. A response that has ended before turn k counts with the return of its last
    turn. So if only last turns have rewards and γ is 1, every turn has the advantage that `group_normalised` gives the
    response.

    Args:
        rewards, turns, discount: as in `returns_to_go`.
        group: as in `group_normalised`.
        estimator: gives the advantages [B] of returns [B] and groups; `dr_grpo`, `rloo` and others do.

    Returns:
        [B, K], meant for all tokens of the turn. Entries past a response's last turn mean nothing.

    Raises:
        ValueError: shapes that do not fit, or a discount out of range.

    Example:
        # Two responses. The first gets 1 in its first turn and 0 in its second, the other one 0 in its only turn.
        by_turn(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([2, 1]), 2)  # [[0.71, 0], [-0.71, 0]]
    """
    returns = returns_to_go(rewards, turns, discount=discount)
    columns = [estimator(column, group) for column in returns.unbind(1)]
    return torch.stack(columns, dim=1) if columns else returns


def each_turn(
    rewards: Tensor,
    turns: Tensor,
    group: Tensor | int,
    *,
    estimator: Callable[[Tensor, Tensor | int], Tensor] = group_normalised,
) -> Tensor:
    """A_ik = (r_ik − mean_j r_jk) / std_j r_jk, the advantage of each turn k of a response i by its own reward alone.

    Mean and standard deviation are over those responses j to the same prompt that have a turn k. Later rewards do not
    count, unlike in `by_turn`. That suits turns which do not influence each other's rewards, such as the problems of a
    worksheet: what the others earn would be noise. Where a turn prepares a later one, `by_turn` is right.

    Args:
        rewards: [B, K] the reward of each turn; entries past a response's last turn are ignored.
        turns: [B] how many turns each response has.
        group: as in `group_normalised`.
        estimator: gives the advantages [B] of rewards [B] and [B] ids of groups, as in `by_turn`.

    Returns:
        [B, K], 0 past a response's last turn, and 0 for a turn that no other response of the group has.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        # Two responses. The first gets 1 in its first turn and 0 in its second, the other one 0 in its only turn.
        each_turn(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([2, 1]), 2)  # [[0.71, 0], [-0.71, 0]]
    """
    if rewards.ndim != 2 or turns.shape != rewards.shape[:1]:
        raise ValueError(
            f"rewards, turns: {tuple(rewards.shape)}, {tuple(turns.shape)}; expected [B, K], [B]."
        )
    rewards = rewards.detach().to(compute_dtype(rewards))
    ids = _Groups(group, rewards.shape[0], rewards.device).ids
    advantages = torch.zeros_like(rewards)
    for k in range(rewards.shape[1]):
        (having,) = (turns > k).nonzero(as_tuple=True)
        advantages[having, k] = estimator(rewards[having, k], ids[having])
    return advantages


def _standardised(values: Tensor, centre: _Groups, spread: _Groups | None, epsilon: float) -> Tensor:
    """(x − mean) / (std + ε) over the values that are not NaN; groups of mean and std, and None for no division."""

    def moments(groups: _Groups) -> tuple[Tensor, Tensor]:
        known = ~values.isnan()
        count = groups.sum(known.to(values.dtype))
        mean = groups.sum(torch.where(known, values, torch.zeros_like(values))) / count
        squares = torch.where(known, (values - mean).square(), torch.zeros_like(values))
        return mean, (groups.sum(squares) / (count - 1).clamp(min=1)).sqrt()

    centred = values - moments(centre)[0]
    return centred if spread is None else centred / (moments(spread)[1] + epsilon)


def _whitened(returns: Tensor, weights: Tensor) -> Tensor:
    """(R − mean) / std, both weighted; the variance is divided by Σ w − 1. Exact zeros where returns are equal."""
    total = weights.sum()
    centred = returns - (weights * returns).sum() / total.clamp(min=1)
    variance = (weights * centred.square()).sum() / (total - 1).clamp(min=1)
    scaled = centred / torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
    return torch.where((returns == returns[:1]).all(), torch.zeros_like(scaled), scaled)


def _lengths(lengths: Tensor | None, mask: Tensor | None, returns: Tensor) -> Tensor:
    if lengths is None and mask is not None:
        lengths = (mask != 0).sum(-1)
    if lengths is None or lengths.shape != returns.shape:
        shape = None if lengths is None else tuple(lengths.shape)
        raise ValueError(f"lengths: {shape}; expected {tuple(returns.shape)}, or a response_mask to count.")
    return lengths.to(returns.dtype)


def _zero_where_equal(advantages: Tensor, returns: Tensor, groups: _Groups) -> Tensor:
    """The advantages, exactly 0 in groups of equal returns, whose mean need not be exact in floating point."""
    return torch.where(groups.equal(returns), torch.zeros_like(advantages), advantages)


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

    Example:
        gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.4, 0.7]]), torch.ones(1, 2), trace=0.0)  # [[0.3, 0.3]]
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


def v_trace(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    log_ratios: Tensor,
    *,
    discount: float = 1.0,
    trace: float | Tensor = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets of the policy π from responses of another one, b: GAE with importance weights.

    With r_t = π(a_t|s_t)/b(a_t|s_t), ρ_t = min(ρ̄, r_t), c_t = min(c̄, r_t) and the error δ_t of `gae`:

        e_t = ρ_t δ_t + γλ c_t e_{t+1},    G_t = V_t + e_t,    A_t = δ_t + γλ e_{t+1}.

    A_t has no weight of its own token, which the objective's ratio brings. Without bars, the expectations of G_t in s_t
    and of A_t after a_t are V^π and A^π if V is V^π. If λ = 1, that of G_t is V^π and that of A_t is Q^π − V whatever V
    is. With all ratios 1, A is that of `gae`. With λ = 1, both are those of V-trace.

    Args:
        rewards, values, response_mask, discount: as in `gae`.
        log_ratios: [B, T] log-probs of the sampled tokens under π minus those under b, in nats.
        trace: λ in [0, 1], or [B] for one per response.
        rho_bar: ρ̄ > 0, the largest weight of a single error. Below ∞, G is of a policy between b and π.
        c_bar: c̄ > 0, the largest factor by which later errors count. It lowers the variance.

    Returns:
        A and G, [B, T] each, 0 outside the mask, without gradient.

    Raises:
        ValueError: shapes that do not fit, or factors out of range.

    Source: "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures", arXiv
    1802.01561, equation 1 and remark 2.

    Example:
        rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.4, 0.7]])
        advantages, targets = v_trace(rewards, values, torch.ones(1, 2), torch.zeros(1, 2))
    """
    errors = gae(rewards, values, response_mask, discount=discount, trace=0.0)
    if log_ratios.shape != values.shape:
        raise ValueError(f"log_ratios: shape {tuple(log_ratios.shape)}; expected {tuple(values.shape)}.")
    for name, bar in (("rho_bar", rho_bar), ("c_bar", c_bar)):
        if not bar > 0:
            raise ValueError(f"{name}: {bar!r} must be more than 0; use inf for no bar.")
    traces = torch.as_tensor(trace, dtype=errors.dtype, device=errors.device)
    if traces.ndim and traces.shape != values.shape[:1]:
        raise ValueError(f"trace: shape {tuple(traces.shape)}; expected a number, or [{len(values)}].")
    if reads_are_free(traces) and not bool(((traces >= 0) & (traces <= 1)).all()):
        raise ValueError(f"trace: {trace!r} must lie in [0, 1].")
    mask, zero, one = response_mask != 0, torch.zeros_like(errors), torch.ones_like(errors)
    ratios = torch.where(mask, log_ratios.detach().to(errors.dtype), zero).exp()
    decay = one * discount * traces.reshape(-1, 1)
    carry = torch.where(mask, decay * ratios.clamp(max=c_bar), one)
    weighted = ratios.clamp(max=rho_bar) * errors
    corrected = _scan_back(weighted, carry)
    targets = values.detach().to(errors.dtype) + corrected
    advantages = errors + decay * torch.nn.functional.pad(corrected[..., 1:], (0, 1))
    return torch.where(mask, advantages, zero), torch.where(mask, targets, zero)


def _scan_back(add: Tensor, carry: Tensor, *, strict: bool = False) -> Tensor:
    """y_t = add_t + carry_t · y_{t+1}; y_{t+1} instead if `strict`."""
    total = linear_recurrence(add.flip(-1), carry.flip(-1)).flip(-1)
    return torch.nn.functional.pad(total[..., 1:], (0, 1)) if strict and add.shape[-1] else total
