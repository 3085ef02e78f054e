"""Starting one run as a process, forked from a server that has already imported what a run needs.

The imports take a tenth of the time of a small run. The server is a separate process that has imported modules and done
nothing else: it has no threads and no sandbox, and has drawn no random numbers. All of the run happens after the fork.
Where a fork is unsafe, the process is started without the server.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import runpy
import sys
import time
from collections.abc import Sequence
from functools import cache
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from ctpo.runs.atomic import write_json

PRELOADED: Final = (
    *("ctpo.training.run.train", "ctpo.report.drawing", "ctpo.cli.main"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "transformers.generation.utils"),
    "transformers.models.llama.modeling_llama",
)
"""Modules that every run imports. Importing them must start nothing. One that is not installed is left out."""
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""The libraries read these when they load. A run with more threads sets them by its recipe."""
COST: Final = "cost.json"
"""The file in which a run's processor and wall-clock seconds are kept."""


def start(words: Sequence[str], log: Path, cores: Sequence[int]) -> BaseProcess:
    """Start `python -m ctpo WORDS` in a session of its own, and return the process.

    Args:
        words: of the command line.
        log: the file to which its output is added.
        cores: to which the process and its children, the sandbox included, are bound; if empty, they are not bound.
    """
    process = _context().Process(target=_become, args=(list(words), str(log), list(cores)))  # type: ignore[attr-defined]
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    started: BaseProcess = process
    return started


@cache
def _context() -> BaseContext:
    if not _fork_is_safe():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _fork_is_safe() -> bool:
    """Return whether a fork is safe. The driver of an accelerator does not survive one."""
    import torch

    return sys.platform == "linux" and not torch.accelerator.is_available()


def _become(words: list[str], log: str, cores: list[int]) -> None:
    """Turn the new process into `python -m ctpo WORDS`, which is what the call of runpy does."""
    os.setsid()  # so that a Ctrl-C reaches the run once, from the comparison
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    gc.freeze()  # imported modules stay; the garbage collector need not examine them
    if cores:
        os.sched_setaffinity(0, cores)
    sys.argv = ["ctpo", *words]
    started = time.monotonic()
    try:
        runpy.run_module("ctpo", run_name="__main__", alter_sys=True)
    finally:
        _add_cost(Path(log).with_name(COST), time.monotonic() - started)


def _add_cost(path: Path, wall_s: float) -> None:
    """Add the seconds of this process and its sandbox to those of earlier parts of the run."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cost = {"cpu_s": sum(each.ru_utime + each.ru_stime for each in used), "wall_s": wall_s}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        cost = {name: value + before[name] for name, value in cost.items()}
    write_json(path, {name: round(value, 2) for name, value in cost.items()})
