"""What makes a checkpoint this run's and no other's."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    """Number of parameters and a digest of their names and shapes, before anything shards them."""
    shapes = [f"{name}:{list(_shape(parameter))}" for name, parameter in sorted(model.named_parameters())]
    digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
    return {"parameters": sum(_numel(parameter) for parameter in model.parameters()), "shapes": digest}


def describe_recipe(keys: Mapping[str, Any], may_change: Collection[str]) -> dict[str, Any]:
    """The keys that decide a run's result."""
    return {name: value for name, value in keys.items() if name not in may_change}


def _shape(parameter: torch.nn.Parameter) -> Any:
    return getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed's ZeRO-3 shards at load time


def _numel(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
