"""verl 0.9.1: the registry, `agg_loss`, and the configuration of a policy loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

POLICY_LOSS_REGISTRY: dict[str, Any] = {}


def register_policy_loss(name: str) -> Callable[[Any], Any]:
    def keep(function: Any) -> Any:
        POLICY_LOSS_REGISTRY[name] = function
        return function

    return keep


def agg_loss(
    loss_mat: Tensor,
    loss_mask: Tensor,
    loss_agg_mode: str,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: int | None = None,
) -> Tensor:
    if loss_agg_mode == "token-mean":
        return (loss_mat * loss_mask).sum() / (batch_num_tokens or loss_mask.sum()) * dp_size
    rows = (loss_mat * loss_mask).sum(-1)
    if loss_agg_mode == "seq-mean-token-mean":
        rows = rows / loss_mask.sum(-1).clamp(min=1)
    elif loss_agg_mode != "seq-mean-token-sum":
        raise NotImplementedError(loss_agg_mode)
    return rows.sum() / (global_batch_size or loss_mask.any(-1).sum()) * dp_size


def apply_bypass_mode(
    batch: Any,
    rollout_corr_config: Any | None = None,
    policy_loss_config: Any = None,
) -> None:
    policy_loss_config["loss_mode"] = "bypass_mode"


@dataclass
class PolicyLossConfig:
    loss_mode: str = "vanilla"
    clip_cov_ratio: float = 0.0002
    clip_cov_lb: float = 1.0
    clip_cov_ub: float = 5.0
    kl_cov_ratio: float = 0.0002
    ppo_kl_coef: float = 0.1
    dro_beta: float | None = None
    rollout_correction: Any = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)
