"""Sharded equals whole on 2 and 4 gloo processes, started once for all the tests of this file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from ctpo.objectives import preset_names

from . import shard_worker
from .shard_worker import LAYOUTS, Difference


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Difference]]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    multiprocessing.set_forkserver_preload(
        ["ctpo.objectives", "torch.distributed"]
    )  # imported once, not four times
    multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        shard_worker.work, (4, str(folder)), nprocs=4, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


def largest(results: list[dict[str, Difference]], prefix: str) -> tuple[int, float]:
    """Number of cases that start so, and the largest difference among them, over the ranks."""
    found = [max(d.values()) for ranks in results for case, d in ranks.items() if case.startswith(prefix)]
    return len(found), max(found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [2, 4])
def test_padded(results: list[dict[str, Difference]], world: int, layout: str) -> None:
    count, difference = largest(results, f"{world}/padded/{layout}/")
    assert count == world * len(preset_names())
    assert difference < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [2, 4])
def test_packed(results: list[dict[str, Difference]], world: int, layout: str) -> None:
    count, difference = largest(results, f"{world}/packed/{layout}/")
    assert count == world * len(preset_names())
    assert difference < 1e-12


@pytest.mark.parametrize("world", [2, 4])
def test_advantages_of_tokens(results: list[dict[str, Difference]], world: int) -> None:
    count, difference = largest(results, f"{world}/per-token/")
    assert count == world * 2 * len(LAYOUTS)
    assert difference < 1e-12


@pytest.mark.parametrize("world", [2, 4])
def test_rollout_correction(results: list[dict[str, Difference]], world: int) -> None:
    count, difference = largest(results, f"{world}/correction/")
    assert count == world * 2 * len(LAYOUTS)
    assert difference < 1e-12


@pytest.mark.parametrize("world", [2, 4])
def test_quantile_over_data_parallel_ranks(results: list[dict[str, Difference]], world: int) -> None:
    count, difference = largest(results, f"{world}/pooled/")
    assert count == world * 3
    assert difference < 1e-12


@pytest.mark.parametrize("world", [2, 4])
def test_numbers_of_one_rank_are_refused(results: list[dict[str, Difference]], world: int) -> None:
    assert largest(results, f"{world}/local/") == (world * 3, 0.0)


@pytest.mark.parametrize("world", [2, 4])
def test_no_tokens(results: list[dict[str, Difference]], world: int) -> None:
    assert largest(results, f"{world}/empty/") == (world * 2, 0.0)
