"""slime and miles on 1, 2 and 4 gloo processes: zig-zag shards give the gradient of whole responses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from . import shard_worker


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    multiprocessing.set_forkserver_preload(["ctpo.adapters", "torch.distributed"])  # once, not four times
    multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        shard_worker.work, (4, str(folder)), nprocs=4, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("trainer", ["slime", "miles"])
def test_every_rank_has_the_gradient_of_the_whole(
    results: list[dict[str, float]], trainer: str, world: int
) -> None:
    prefix = f"{trainer}/{world}/"
    values = [value for ranks in results for case, value in ranks.items() if case.startswith(prefix)]
    assert len(values) == world * len(shard_worker.PRESETS)
    assert max(values) < 1e-6
