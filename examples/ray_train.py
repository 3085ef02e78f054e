"""`ctpo train` on the workers of Ray Train, which goes on from its last checkpoint if a worker is lost.

    pip install 'ctpo[train]' 'ray[train]'
    python examples/ray_train.py runs/ray per_device_train_batch_size=16             # two workers on this machine
    python examples/ray_train.py runs/ray my.yaml --workers 8 --gpu --address auto   # eight GPUs of a Ray cluster

The words after the run's directory are those of `ctpo train`. Ray starts one process per worker and joins them, as
torchrun does. On a CPU the run ends with torchrun's weights, bit for bit. On a cluster, the directory, the recipe and
the data must be on a file system that all machines share; give them as absolute paths.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def work(config: dict[str, Any]) -> None:
    """What each worker does: train, or go on with the run if an earlier attempt has begun it."""
    from ctpo.cli.main import main

    run = Path(config["run"])
    # The first attempt opens the directory only after all of its workers have come this far.
    begun = (run / "config.yaml").is_file()
    words = ["--resume", str(run)] if begun else [*config["words"], f"output_dir={run}"]
    code = main(["train", *words])
    if code:
        raise RuntimeError(f"ctpo train ended with exit code {code}; its own line says why")


def main() -> None:
    """Train in the workers of a local Ray, or of a cluster."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the run's directory; one that holds a run is resumed")
    parser.add_argument("words", nargs="*", help="recipe and key=value, as for `ctpo train`")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one GPU per worker")
    parser.add_argument("--failures", type=int, default=3, help="how many lost workers the run survives")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one worker waits for another")
    parser.add_argument("--address", help="of a Ray cluster; without it, Ray starts on this machine")
    args = parser.parse_args()
    run = args.run.absolute()
    # A worker runs in a directory of Ray's, so a recipe is named by its whole path.
    words = [os.path.abspath(word) if os.path.isfile(word) else word for word in args.words]
    # Twice the workers: Ray starts others in the place of lost ones while it still counts those.
    local = {} if args.address else {"num_cpus": 2 * args.workers, "include_dashboard": False}
    ray.init(address=args.address, **local)
    trainer = TorchTrainer(
        work,
        train_loop_config={"run": str(run), "words": words},
        torch_config=TorchConfig(timeout_s=args.timeout),
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=args.gpu),
        run_config=RunConfig(
            name=f"{run.name}.ray",
            storage_path=str(run.parent),
            failure_config=FailureConfig(max_failures=args.failures),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
