"""What a run by verl finds on its machine, and the names under which verl knows what is ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ctpo.engines.choice import SYNC

VERSION: Final = "0.9.1"
"""The version of verl whose keys these are."""
CPU_ROLLOUT: Final = "ctpo_cpu"
"""The name of our rollout server for machines without an accelerator."""
RAY_SHIPPING: Final = "ctpo_ray"
"""The name of our checkpoint engine, which ships weights through Ray's object store."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a run finds on its machine: the files that were written for it, and the processes that it may use."""

    model: str
    """The directory or hub id of the weights."""
    chat_template: bool = True
    """Whether the model has a chat template."""
    train_file: Path
    """The training problems, as verl reads them."""
    test_file: Path
    """The held-out problems."""
    agent_file: Path
    """Says where our agent loop is."""
    checkpoints: Path
    """The folder for verl's own checkpoints."""
    train_problems: int
    test_problems: int
    prompt_tokens: int
    """Tokens of the longest prompt."""
    processes: int = 1
    """How many processes train on each machine. The sizes of a recipe mean what they mean under torchrun."""
    machines: int = 1
    accelerator: bool = True
    """Whether there are accelerators. Without one, our own platform for CPUs runs."""
    ray_address: str | None = None
    """The address of a running Ray cluster; None starts Ray on this machine."""
    trainer_mode: str = SYNC
    """One of `ctpo.engines.choice.MODES`."""
    rollout_processes: int = 1
    """How many processes only sample, on each machine, if the run is asynchronous."""
    max_staleness: int = 2
    """By how many versions of the weights a response may lag behind, if the run is asynchronous."""
    resume_from: Path | None = None
    """The checkpoint of verl's to go on from."""


def environment(accelerator: bool) -> dict[str, str]:
    """What every process of verl must find in its environment."""
    needed = {"VERL_USE_EXTERNAL_MODULES": "ctpo.engines.verl.plugin", "TOKENIZERS_PARALLELISM": "false"}
    return needed if accelerator else {**needed, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"}
