"""SkyRL 0.4: the registry of policy losses, the masked sum, and the algorithm's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Union

from torch import Tensor

DictConfig = Any


class BaseFunctionRegistry:
    _functions: dict[str, Any] = {}  # noqa: RUF012

    @classmethod
    def register(cls, name: Union[str, StrEnum], func: Callable):  # type: ignore[no-untyped-def, type-arg]  # noqa: UP007
        if name in cls._functions:
            raise ValueError(f"{name!r} already registered")
        cls._functions[name] = func

    @classmethod
    def list_available(cls) -> list[str]:
        return list(cls._functions)

    @classmethod
    def get(cls, name: str) -> Any:
        return cls._functions[name]


PolicyLossRegistry = BaseFunctionRegistry


@dataclass
class AlgorithmConfig:
    policy_loss_type: str = "regular"
    off_policy_correction: Any = None


def reduce_loss(loss: Tensor, loss_mask: Tensor | None) -> Tensor:
    return loss.sum() if loss_mask is None else (loss * loss_mask).sum()


def apply_off_policy_correction(
    loss: Tensor,
    old_log_probs: Tensor,
    rollout_logprobs: Tensor | None,
    loss_mask: Tensor,
    off_policy_correction: DictConfig,
) -> tuple[Tensor, Tensor, dict]:  # type: ignore[type-arg]
    assert off_policy_correction is None, "the stand-in knows no correction"
    return loss, loss_mask, {}
