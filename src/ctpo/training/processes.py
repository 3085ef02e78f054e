"""Several processes as one run: how they join, what they agree on, the whole model that each of them samples from, and
what is printed when one of them is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from torch import distributed as dist
from trl.models import unwrap_model_for_generation

from ctpo.errors import UserError
from ctpo.runs.directory import RunDirectory

T = TypeVar("T")

_SILENT: Final = ("timed out", "timeout")
_GONE: Final = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "remote process exited",
)
_TRANSPORTS: Final = ("gloo", "nccl", "tcpstore", "store", "socket")


class PeerLost(UserError):
    """Another process of the run has ended, or does not answer."""

    of_one_process = True


class Waiting(Protocol):
    """The settings of a run that say how its processes wait for each other."""

    use_cpu: bool
    ddp_backend: str | None
    ddp_timeout: int
    """Seconds that one waits for another."""
    output_dir: str | None


def join(settings: Waiting) -> None:
    """Join the processes that a launcher has started on CPUs, with `ddp_timeout` as the limit of their waiting.

    transformers passes `ddp_timeout` on for GPUs only. Does nothing for GPUs, for a single process, and where the
    processes have joined already.

    Raises:
        PeerLost: if the others do not come.
    """
    if not settings.use_cpu or os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        return
    with peers_in_one_line(settings):
        timeout = timedelta(seconds=settings.ddp_timeout)
        PartialState(cpu=True, backend=settings.ddp_backend, timeout=timeout)


@contextmanager
def peers_in_one_line(settings: Waiting) -> Iterator[None]:
    """A context in which the loss of another process becomes an error of one line.

    Raises:
        PeerLost: instead of the errors of torch.distributed.
    """
    try:
        yield
    except RuntimeError as error:
        reason = None if isinstance(error, UserError) else _about_a_peer(error, settings.ddp_timeout)
        if reason is None:
            raise
        run = Path(settings.output_dir or "")
        started = RunDirectory(run).config.is_file()
        again = f"go on with --resume {run}" if started else "start all processes again"
        raise PeerLost(f"{reason}; {again}") from None


def _about_a_peer(error: RuntimeError, timeout_s: float) -> str | None:
    """What an error says of another process; None if it is about something else."""
    text = str(error).lower()
    if not isinstance(error, dist.DistError) and not any(each in text for each in _TRANSPORTS):
        return None
    if any(each in text for each in _SILENT):
        return (
            f"another process has not answered for {timeout_s:g} seconds (ddp_timeout={timeout_s:g}): it hangs or is "
            "stopped, or it needs longer, and then a larger ddp_timeout helps"
        )
    if any(each in text for each in _GONE):
        return "another process of this run has ended, and its own output says why"
    return None


def unused_sharding(accelerator: Any, fsdp: object = None, deepspeed: object = None) -> str | None:
    """One sentence if FSDP or DeepSpeed was asked for and is not in use; None otherwise.

    accelerate leaves out both where it finds no GPU, and FSDP where there is one process only. Nothing else would show
    it, as the run then trains with all weights in every process.

    Args:
        accelerator: what has joined the processes.
        fsdp, deepspeed: the settings of these names; the launcher's environment variables count too.
    """
    kind = accelerator.distributed_type
    for name, given, wanted in (
        ("FSDP", fsdp, DistributedType.FSDP),
        ("DEEPSPEED", deepspeed, DistributedType.DEEPSPEED),
    ):
        asked = bool(given) or os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1")
        if asked and kind != wanted:
            title = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}[name]
            return (
                f"{title} was asked for and is not in use ({kind.value}, {accelerator.num_processes} processes on "
                f"{accelerator.device.type}): every process holds the whole model"
            )
    return None


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
