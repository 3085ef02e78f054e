"""From rewards and values to advantages for the policy and targets for the critic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctpo.objectives.advantages import gae, v_trace


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """What values say about B responses of T tokens; 0 on tokens that the model did not sample."""

    advantages: Tensor
    """[B, T] for the policy, before they are normalised."""
    targets: Tensor
    """[B, T] what the critic's values should be."""


def estimates(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    knobs: Mapping[str, Any],
    log_ratios: Tensor | None = None,
) -> Estimates:
    """The advantages of the policy, with its λ and γ, and the targets of the critic, with its own.

    Tokens outside the mask are skipped, as if they were not there.

    Args:
        rewards: [B, T].
        values: [B, T].
        mask: [B, T] boolean, true on the tokens that the model sampled.
        knobs: of `critic`.
        log_ratios: [B, T] log-probs of the policy that learns minus those of the policy that sampled. If given, returns
            are corrected by `v_trace`.
    """
    discount, trace = knobs["discount"], policy_trace(mask, knobs)
    value_discount, value_trace = discount_of_values(knobs), knobs["value_trace"]
    bars = {name: knobs[name] if log_ratios is not None else torch.inf for name in ("rho_bar", "c_bar")}
    ratios = torch.zeros_like(values) if log_ratios is None else log_ratios
    advantages, targets = v_trace(rewards, values, mask, ratios, discount=discount, trace=trace, **bars)
    if isinstance(trace, Tensor) or (trace, discount) != (value_trace, value_discount):
        _, targets = v_trace(
            rewards, values, mask, ratios, discount=value_discount, trace=value_trace, **bars
        )
    return Estimates(advantages=advantages, targets=targets)


def discount_of_values(knobs: Mapping[str, Any]) -> float:
    """γ of the critic's targets: that of the policy if it has none of its own."""
    discount: float = knobs["discount"] if knobs["value_discount"] is None else knobs["value_discount"]
    return discount


def policy_trace(mask: Tensor, knobs: Mapping[str, Any]) -> float | Tensor:
    """λ of the policy: a number, or [B] max(0, 1 − 1/(α n)) for responses of n sampled tokens if `trace_length` is α.

    Source: "VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks", arXiv 2504.05118,
    section 4.2, with α = 0.05.
    """
    if knobs["trace_length"] is None:
        return float(knobs["trace"])
    lengths = mask.sum(dim=1).clamp(min=1).double()
    by_length: Tensor = (1 - 1 / (knobs["trace_length"] * lengths)).clamp(min=0)
    return by_length


def returns_of(rewards: Tensor, mask: Tensor, knobs: Mapping[str, Any]) -> Tensor:
    """[B, T] the return that was observed from each sampled token on, with the critic's discount."""
    zero = torch.zeros_like(rewards)
    return gae(rewards, zero, mask, discount=discount_of_values(knobs), trace=1.0)


def normalised(advantages: Tensor, mask: Tensor, how: str, accelerator: Any) -> Tensor:
    """[B, T] the advantages by the mean and the standard deviation of all sampled tokens of the rollout batch.

    Every process must call. Advantages that are all equal become 0 with "whiten" and stay as they are with "scale".

    Args:
        advantages: [B, T] of this process.
        mask: [B, T] boolean, true on the tokens that count.
        how: "whiten" subtracts the mean and divides by the standard deviation, "scale" divides alone, "none" does
            nothing.
        accelerator: adds up over processes.
    """
    if how == "none":
        return advantages
    own = advantages[mask]
    count, total = accelerator.reduce(
        torch.stack([own.new_tensor(float(own.numel())), own.sum()]), reduction="sum"
    ).unbind()
    mean = total / count.clamp(min=1)
    squares = accelerator.reduce((own - mean).square().sum(), reduction="sum")
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    centred = advantages - mean if how == "whiten" else advantages
    return torch.where(mask, centred / torch.where(std > 0, std, torch.ones_like(std)), 0.0)
