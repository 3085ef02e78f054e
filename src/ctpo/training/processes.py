"""Several processes as one run: what they agree on, and the model they sample from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from torch import distributed as dist
from trl.models import unwrap_model_for_generation

from ctpo.errors import UserError

T = TypeVar("T")


def on_main(function: Callable[[], T], processes: int, index: int) -> T:
    """Call it in the main process and have every process get its result, or its mistake.

    Raises:
        UserError: in every process, if the main one did.
    """
    if processes == 1:
        return function()
    box: list[Any] = [None]
    if index == 0:
        try:
            box = [(True, function())]
        except UserError as error:
            box = [(False, str(error))]
    succeeded, result = broadcast_object_list(box)[0]
    if not succeeded:
        raise UserError(result)
    answer: T = result
    return answer


def any_of(flag: bool, accelerator: Any) -> bool:
    """Whether it is so in any process; each must ask."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor([float(flag)], device=accelerator.device), reduction="sum")
    return bool(total.item() > 0)


def share(count: int, processes: int, index: int) -> range:
    """This process's contiguous part of so many items, parts as equal as can be."""
    return range(count * index // processes, count * (index + 1) // processes)


@contextmanager
def whole_model(trainer: Any) -> Iterator[Any]:
    """The model with all of its weights in this process, to sample from.

    Processes sample responses of different lengths, so no step of theirs may wait for the others: sharded weights
    are gathered before and dropped after.
    """
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
        shards = [module for module in model.modules() if _is_fsdp2(module)]
        for module in shards:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            with _fsdp1_gathered(trainer):
                yield model
        finally:
            if dist.is_initialized() and shards:
                dist.barrier()
            for module in shards:
                module.set_reshard_after_forward(_reshards(trainer), recurse=False)
                module.reshard()


@contextmanager
def _fsdp1_gathered(trainer: Any) -> Iterator[None]:
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if not trainer.is_fsdp_enabled or getattr(plugin, "fsdp_version", 1) != 1:
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(trainer.model_wrapped, writeback=False):
        yield


def _reshards(trainer: Any) -> bool:
    return bool(trainer.accelerator.state.fsdp_plugin.reshard_after_forward)


def _is_fsdp2(module: torch.nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
