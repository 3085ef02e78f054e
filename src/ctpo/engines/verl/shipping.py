"""Weights through Ray's object store, where training and sampling are different processes.

`rollout.checkpoint_engine.backend` chooses it. verl's own need NCCL or RDMA.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import ray
import torch
from torch import Tensor
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry

from ctpo.engines.verl.site import RAY_SHIPPING

_MAILBOX: Final = f"{RAY_SHIPPING}_mailbox"


class Mailbox:
    """The newest weights. Whoever asks for a version waits until it has come."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._weights: dict[str, Tensor] = {}
        self._came = asyncio.Condition()

    async def put(self, version: int | None, weights: dict[str, Tensor]) -> None:
        """Replace the weights by these."""
        async with self._came:
            self._version, self._weights = version, weights
            self._came.notify_all()

    async def get(self, version: int | None) -> dict[str, Tensor]:
        """The weights of this version."""
        async with self._came:
            await self._came.wait_for(lambda: self._version == version and bool(self._weights))
            return self._weights


@CheckpointEngineRegistry.register(RAY_SHIPPING)
class RayCheckpointEngine(CheckpointEngine):  # type: ignore[misc]
    """Sends whole tensors from the first training process to every receiver."""

    def __init__(self, bucket_size: int, is_master: bool = False, **_: Any) -> None:
        self._is_master = is_master
        self._mailbox: Any = None

    def prepare(self) -> None:
        """Make the mailbox, once.

        Ray ends a named actor when the handle that made it is gone, whoever else uses it. So the first training process
        makes it before anyone asks, and keeps that handle as long as it lives.
        """
        if self._is_master and self._mailbox is None:
            self._mailbox = ray.remote(num_cpus=0)(Mailbox).options(name=_MAILBOX).remote()

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        total = actor_wg_world_size + rollout_world_size
        return {"rank": list(range(actor_wg_world_size))}, {"rank": list(range(actor_wg_world_size, total))}

    def init_process_group(self, rank: int) -> None: ...

    def finalize(self) -> None:
        """Empty the mailbox: every receiver has the weights."""
        if self._is_master:
            self._mailbox.put.remote(None, {})

    @torch.no_grad()
    async def send_weights(
        self, weights: Iterable[tuple[str, Tensor]], global_steps: int | None = None
    ) -> None:
        """Send the weights of this version. Every training process gathers."""
        whole = {name: tensor.detach().cpu().clone() for name, tensor in weights}
        if self._is_master:
            await self._mailbox.put.remote(global_steps, whole)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, Tensor]]:
        """The weights of this version, once they have come."""
        for name, tensor in (await ray.get_actor(_MAILBOX).get.remote(global_steps)).items():
            yield name, tensor
