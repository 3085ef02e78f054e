"""How the processes of a run were started, from the variables that launchers set, and how long they wait."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from ctpo.errors import UserError

DDP_TIMEOUT: Final = 600
"""The default of `ddp_timeout`: seconds that one process of a run waits for another. In transformers it is 1800."""


def check_launch(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a launch that was to start several processes and started only one.

    `accelerate launch --cpu --num_processes 2` without an MPI host file sets the address where processes meet and then
    runs the script once. The script would not notice, and would train on half of the batch.

    Raises:
        UserError: saying how to start several processes.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_ADDR" in environ
    started = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "CCL_WORLD_SIZE")
    if launched and not any(name in environ for name in started):
        raise UserError(
            "accelerate launch was asked for several processes and started one (it does on CPUs); start them with "
            "`torchrun --nproc_per_node 2 -m ctpo train ...`"
        )


def check_joined(processes: int, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse processes that were started together but would train separately, all in the same directory.

    accelerate joins processes over their GPUs. Without a GPU it joins them only if `use_cpu` is set; otherwise each
    runs alone, under DeepSpeed too.

    Args:
        processes: the number of processes that accelerate has joined.

    Raises:
        UserError: saying how to join them.
    """
    started = int(environ.get("WORLD_SIZE", "1"))
    if processes < started:
        raise UserError(
            f"{started} processes were started and each would train alone, as no GPU was found; on CPUs set "
            "use_cpu=true and start them with `torchrun`, without FSDP or DeepSpeed"
        )
