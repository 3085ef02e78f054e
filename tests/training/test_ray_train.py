"""`examples/ray_train.py` ends with torchrun's weights, also after a worker was killed (`make test-verl`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **quiet}
        )


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that two processes of torchrun end with."""
    folder = tmp_path_factory.mktemp("torchrun")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "ctpo"]
    process = start([*launcher, "train", *WORDS, f"output_dir={folder / 'run'}"], folder / "log")
    assert process.wait(LIMIT_S) == 0, (folder / "log").read_text()
    return load_file(folder / "run" / "model" / "model.safetensors")


def same_weights(run: Path, expected: dict[str, torch.Tensor]) -> None:
    weights = load_file(run / "model" / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_two_workers_train_as_torchrun_does(torchrun: dict[str, torch.Tensor], tmp_path: Path) -> None:
    process = start([str(EXAMPLE), str(tmp_path / "run"), *WORDS], tmp_path / "log")
    assert process.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()
    same_weights(tmp_path / "run", torchrun)


def test_a_killed_worker_changes_nothing(torchrun: dict[str, torch.Tensor], tmp_path: Path) -> None:
    process = start([str(EXAMPLE), str(tmp_path / "run"), *WORDS], tmp_path / "log")
    until = time.monotonic() + LIMIT_S
    while not (tmp_path / "run" / "checkpoint-4").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    workers = [each for each in below if "TrainWorker" in " ".join(each.cmdline())]
    assert len(workers) == 2, [each.cmdline() for each in below]
    os.kill(workers[-1].pid, signal.SIGKILL)
    assert process.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "continuing from checkpoint-" in log, log
    same_weights(tmp_path / "run", torchrun)
