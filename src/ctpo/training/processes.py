"""Several processes as one run: what they agree on, and the whole model that each of them samples from."""

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
    """The result of a function that only the main process calls, in every process.

    Args:
        function: takes nothing, and returns something that can be pickled.
        processes: how many there are; each must call this.
        index: this process's number; the main process is 0.

    Raises:
        UserError: in every process, if the function raised one.
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
    """Whether the flag is true in any process; every process must call this."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor([float(flag)], device=accelerator.device), reduction="sum")
    return bool(total.item() > 0)


def share(count: int, processes: int, index: int) -> range:
    """The indices of this process's contiguous part of `count` items. The parts are as equal as possible."""
    return range(count * index // processes, count * (index + 1) // processes)


@contextmanager
def whole_model(model_wrapped: Any, accelerator: Any) -> Iterator[Any]:
    """A context with the model to sample from, all of its weights in this process.

    Processes sample responses of different lengths, so no step of one may wait for the others. Sharded weights are
    therefore gathered before and dropped afterwards.

    Args:
        model_wrapped: the model as it is wrapped for distributed training.
        accelerator: what wrapped it.
    """
    with unwrap_model_for_generation(model_wrapped, accelerator) as model:
        shards = [module for module in model.modules() if _is_fsdp2(module)]
        for module in shards:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            with _fsdp1_gathered(model_wrapped, accelerator):
                yield model
        finally:
            if dist.is_initialized() and shards:
                dist.barrier()
            for module in shards:
                module.set_reshard_after_forward(_reshards(accelerator), recurse=False)
                module.reshard()


@contextmanager
def _fsdp1_gathered(model_wrapped: Any, accelerator: Any) -> Iterator[None]:
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or getattr(plugin, "fsdp_version", 1) != 1:
        yield
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model_wrapped, writeback=False):
        yield


def _reshards(accelerator: Any) -> bool:
    return bool(accelerator.state.fsdp_plugin.reshard_after_forward)


def _is_fsdp2(module: torch.nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
