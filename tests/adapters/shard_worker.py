"""What each gloo process of test_sharded runs: slime and miles, sharded, against the objective on whole responses."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.distributed as dist

from . import handover
from .standins import provide

PRESETS = ("ctpo", "gspo", "cispo", "minpro", "ctpo-prefix-gradient", "grpo")


def use_group(trainer: str, group: Any, alone: Any) -> None:
    """Tell the trainer (or its stand-in) which group shares the sequences."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if trainer == "slime":
        importlib.import_module("megatron.core.mpu").use(group, alone)
        return
    parallel = importlib.import_module("miles.backends.training_utils.parallel")
    handover.alone(parallel, parallel.GroupInfo(rank, size, group), alone)


def compare(trainer: str, name: str, group: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    """Largest difference of this rank's gradients from those of the whole, and of the summed loss."""
    batch = handover.make()
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    adapter = importlib.import_module(f"ctpo.adapters.{trainer}")
    if trainer == "slime":
        backend = "slime.backends.megatron_utils"
        shards, scorer = (importlib.import_module(f"{backend}.{each}") for each in ("cp_utils", "loss"))
    else:
        backend = "miles.backends.training_utils"
        names = ("cp_utils", "loss_hub.logit_processors")
        shards, scorer = (importlib.import_module(f"{backend}.{each}") for each in names)

    def columns(total: int, response: int, _: int) -> torch.Tensor:
        if world == 1:
            return torch.arange(response)
        _, _, scored, _ = shards.get_logits_and_tokens_offset_with_cp(total, response)
        return torch.cat([torch.arange(start, end) for start, end in scored]) - (total - response - 1)

    def held(total: int) -> torch.Tensor:
        size = -(-total // (2 * world))
        if world == 1:
            return torch.arange(total)
        chunks = (rank, 2 * world - 1 - rank)
        return torch.cat([torch.arange(k * size, (k + 1) * size) for k in chunks])

    given, logits, local = handover.zigzag_inputs(batch, columns, held)
    knobs: dict[str, Any] = handover.KNOBS.get(name, {})
    with monkeypatch.context() as patch:
        seen = handover.capture(scorer, patch)
        reducer = shards.get_sum_of_sample_mean(
            given["total_lengths"], given["response_lengths"], given["loss_masks"]
        )
        loss, _ = adapter.loss(handover.arguments(name, knobs), given, logits, reducer)
        loss = loss / len(handover.LENGTHS)
        with no_collectives():
            loss.backward()
    expected, grad = handover.core(name, batch, handover.REDUCED_AS[trainer], **knobs)
    worst = 0.0
    for row, (values, at) in enumerate(zip(seen[0], local, strict=True)):
        if len(at):
            assert values.grad is not None
            worst = max(worst, (values.grad - grad[row, at]).abs().max().item())
    total = loss.detach().double()
    dist.all_reduce(total, group=group)
    return max(worst, abs(total.item() - expected.item()))


class no_collectives:
    """Any collective inside this block is an error."""

    def __enter__(self) -> None:
        self.saved = {name: getattr(dist, name) for name in ("all_gather", "all_reduce", "reduce_scatter")}
        for name in self.saved:
            setattr(dist, name, self._refuse)

    def __exit__(self, *_: object) -> None:
        for name, function in self.saved.items():
            setattr(dist, name, function)

    @staticmethod
    def _refuse(*_: object, **__: object) -> None:
        raise AssertionError("a collective in the backward pass")


def work(rank: int, world: int, folder: str) -> None:
    """Entry of a process; writes this rank's differences."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    groups = {4: dist.group.WORLD, 2: dist.new_group([0, 1]), 1: dist.new_group([0])}
    alone = [dist.new_group([each]) for each in range(world)][rank]
    results = {}
    monkeypatch = pytest.MonkeyPatch()
    for trainer in ("slime", "miles"):
        provide(trainer, monkeypatch)
        for size, group in groups.items():
            if rank >= size:
                continue
            use_group(trainer, group, alone)
            for name in PRESETS:
                results[f"{trainer}/{size}/{name}"] = compare(trainer, name, group, monkeypatch)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
