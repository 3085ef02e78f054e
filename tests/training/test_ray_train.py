"""`examples/ray_train.py` ends with torchrun's weights, also after a worker was killed (`make test-verl`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_train.py"
WORDS = (
    "rollout_batches=2 generation_batch_size=32 num_generations=4 per_device_train_batch_size=4 train_problems=32 "
    "eval_problems=8 eval_every=0 max_completion_length=64 save_steps=2 save_total_limit=1 learning_rate=1e-3 threads=1"
).split()
"""Eight updates."""
LIMIT_S = 600

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; see make test-verl")


@contextmanager
def started(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program with these words; it and all that it started have ended afterwards."""
    plain = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **plain}
        )
    try:
        yield process
    finally:
        for each in [*children_of(process), process]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                each.kill()
        process.wait()


def children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return list(psutil.Process(process.pid).children(recursive=True))
    return []


def words_of(process: psutil.Process) -> str:
    """How a process was started; nothing for one that has ended since it was listed, as Ray's idle workers do."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def ended(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the program has printed, which must end well."""
    assert process.wait(LIMIT_S) == 0, log.read_text()
    return log.read_text()


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that two processes of torchrun end with."""
    folder = tmp_path_factory.mktemp("torchrun")
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "ctpo", "train", *WORDS]
    with started([*words, f"output_dir={folder / 'run'}"], folder / "log") as process:
        ended(process, folder / "log")
    return load_file(folder / "run" / "model" / "model.safetensors")


def same_weights(run: Path, expected: dict[str, torch.Tensor]) -> None:
    weights = load_file(run / "model" / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_two_workers_train_as_torchrun_does(torchrun: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with started([str(EXAMPLE), str(tmp_path / "run"), *WORDS], tmp_path / "log") as process:
        ended(process, tmp_path / "log")
    same_weights(tmp_path / "run", torchrun)


def test_a_killed_worker_changes_nothing(torchrun: dict[str, torch.Tensor], tmp_path: Path) -> None:
    log, until = tmp_path / "log", time.monotonic() + LIMIT_S
    with started([str(EXAMPLE), str(tmp_path / "run"), *WORDS], log) as process:
        while not (tmp_path / "run" / "checkpoint-4").exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        workers = [each for each in children_of(process) if "TrainWorker" in words_of(each)]
        assert len(workers) == 2
        workers[-1].kill()
        printed = ended(process, log)
    assert "continuing from checkpoint-" in printed
    same_weights(tmp_path / "run", torchrun)
