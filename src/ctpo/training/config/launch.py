"""How processes were started, read from what their launcher left in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ctpo.errors import UserError


def check_launch(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a launch that says several processes and starts one.

    `accelerate launch --cpu --num_processes 2` without an MPI host file sets an address to meet at and then runs
    the script once, with nothing that tells it so and half the batch asked for.

    Raises:
        UserError: saying how to start several.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_ADDR" in environ
    started = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "CCL_WORLD_SIZE")
    if launched and not any(name in environ for name in started):
        raise UserError(
            "accelerate launch was asked for several processes and started one (it does on CPUs); start them with "
            "`torchrun --nproc_per_node 2 -m ctpo train ...`"
        )


def check_joined(processes: int, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse processes that were started together and would train apart, each into the same directory.

    accelerate joins processes over their GPUs. Without a GPU it does so where `use_cpu` is set and lets each run alone
    otherwise, under DeepSpeed too.

    Args:
        processes: as accelerate counts them.

    Raises:
        UserError: saying what joins them.
    """
    started = int(environ.get("WORLD_SIZE", "1"))
    if processes < started:
        raise UserError(
            f"{started} processes were started and each would train alone, as no GPU was found; on CPUs set "
            "use_cpu=true and start them with `torchrun`, without FSDP or DeepSpeed"
        )
