"""How verl starts our rollout servers and hands them weights, on machines without an accelerator."""

from __future__ import annotations

import os
from typing import Any

import ray
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica
from verl.workers.rollout.utils import ensure_async_iterator

from ctpo.engines.verl.serving import Server, server_name


class Replica(RolloutReplica):  # type: ignore[misc]
    """One server. It takes no place of a training process."""

    def rollout_worker_use_gpu(self) -> bool:
        return False

    async def launch_servers(self) -> None:
        """Start the server and wait until it has loaded the model."""
        name = server_name(self.replica_rank, self.name_suffix)
        actor = ray.remote(num_cpus=0)(Server).options(name=name, max_concurrency=self.max_concurrency)
        self._server_handle = actor.remote(
            self.model_config.path,
            self.config.max_num_seqs,
            self.config.seed + self.replica_rank,
            int(os.environ.get("OMP_NUM_THREADS", "1")),
        )
        self.servers = [self._server_handle]
        self._server_address = name
        await self._server_handle.ready.remote()


class WeightSender(BaseRollout):  # type: ignore[misc]
    """Stands in a training worker, or in a worker that receives weights, and hands them to the replica's server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        rank, width = int(os.environ["RANK"]), self.config.tensor_model_parallel_size
        self.replica_rank = rank // width if replica_rank == -1 else replica_rank
        self.is_leader_rank = rank % width == 0

    async def resume(self, tags: Any) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self, weights: Any, wire_format: str = "named_tensors", global_steps: int | None = None, **_: Any
    ) -> None:
        """Send the weights through Ray's object store. Every rank gathers, since whole tensors take all of them."""
        whole = {name: tensor.detach().cpu().clone() async for name, tensor in ensure_async_iterator(weights)}
        if self.is_leader_rank:
            await ray.get_actor(server_name(self.replica_rank)).load.remote(whole, global_steps)
