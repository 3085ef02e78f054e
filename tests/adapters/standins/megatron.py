"""Megatron-core: the context-parallel group of this process; `use` sets it."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

_GROUP: Any = None
_ALONE: Any = None


def use(group: Any, alone: Any = None) -> None:
    """Set the context-parallel group, and a group of this process alone for the tensor-parallel one."""
    global _GROUP, _ALONE
    _GROUP, _ALONE = group, alone


def get_context_parallel_world_size() -> int:
    return 1 if _GROUP is None else dist.get_world_size(_GROUP)


def get_context_parallel_rank() -> int:
    return 0 if _GROUP is None else dist.get_rank(_GROUP)


def get_context_parallel_group() -> Any:
    return _GROUP


def get_tensor_model_parallel_group() -> Any:
    return _ALONE
