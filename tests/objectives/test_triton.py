"""The Triton path: what needs no Triton here, and the cases that do in a process of their own.

Triton reads TRITON_INTERPRET when a kernel is decorated, so its interpreter needs a fresh process, where no
other test can have imported Triton before. On a machine with a GPU the same cases run on it, uninterpreted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ctpo.objectives import preset, triton_path
from ctpo.objectives.triton_launch import RATIO_CODES, SURROGATE_CODES, Tiles

from .batches import make, run

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not triton_path.installed(), reason="triton is not installed")


def in_a_fresh_process(cases: str, interpret: bool, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", str(HERE / cases), "-p", "no:cacheprovider"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent.parent)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
    assert " skipped" not in ran.stdout


@needs_triton
@pytest.mark.parametrize("cases", ["triton_values.py", "triton_inputs.py", "triton_launches.py"])
def test_the_kernels(cases: str, tmp_path: Path) -> None:
    in_a_fresh_process(cases, not torch.cuda.is_available(), tmp_path)


@needs_triton
def test_the_kernels_compile(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not; compiling needs no GPU."""
    in_a_fresh_process("triton_compiles.py", False, tmp_path)


def test_asking_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_path, "installed", lambda: False)
    with pytest.raises(ValueError, match=r"backend: 'triton' needs the package triton; install it"):
        run(preset("ctpo", backend="triton"), make())


def test_asking_for_it_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_path, "installed", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"runs on a GPU, logps are on cpu; pass 'auto'"):
        run(preset("ctpo", backend="triton"), make())


def test_auto_on_the_cpu_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_path, "installed", lambda: True)
    assert not triton_path.applies("auto", torch.zeros(2, 3))
    assert not triton_path.applies("compile", torch.zeros(2, 3))


def test_every_plan_has_codes() -> None:
    from ctpo.objectives.plan import RATIOS
    from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight

    assert set(RATIO_CODES) == set(RATIOS)
    assert set(SURROGATE_CODES) == {MinClip, StopGradientWeight, Linear}


@pytest.mark.parametrize(
    ("length", "block", "chunks", "padded"),
    [(1, 16, 1, 1), (17, 32, 1, 1), (2048, 2048, 1, 1), (2049, 2048, 2, 2), (524_288, 2048, 256, 256)],
)
def test_tiles(length: int, block: int, chunks: int, padded: int) -> None:
    tiles = Tiles(3, length, torch.float32, torch.device("cpu"))
    assert (tiles.block, tiles.chunks, tiles.padded_chunks) == (block, chunks, padded)
    assert tiles.programs == 3 * chunks
    assert (chunks - 1) * block < length <= chunks * block
