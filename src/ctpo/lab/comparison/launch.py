"""One run as a process: forked from a server that has the imports behind it, or started afresh where a fork is unsafe.

The imports of a run take as long as a tenth of a small run itself. The server is a process of its own that has done
nothing but import: no thread, no random number drawn, no sandbox. Everything a run is happens after the fork.
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

PRELOADED: Final = (
    *("ctpo.training.run.train", "ctpo.report.drawing", "ctpo.cli.main"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "transformers.generation.utils"),
    "transformers.models.llama.modeling_llama",
)
"""What a run imports sooner or later. Importing these must start nothing; one that is not there is left out."""
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Read when the libraries load; a run of more threads says so in its recipe."""
COST: Final = "cost.json"


def start(words: Sequence[str], log: Path, cores: Sequence[int]) -> BaseProcess:
    """`python -m ctpo WORDS` in a session of its own.

    Args:
        words: of the command line.
        log: what it prints is added here.
        cores: those it and its children, the sandbox included, are bound to; none: not bound.
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
    """Not where an accelerator could be in use: its driver does not outlive a fork."""
    import torch

    return sys.platform == "linux" and not torch.accelerator.is_available()


def _become(words: list[str], log: str, cores: list[int]) -> None:
    """What the new process does; the runpy call is `python -m ctpo`."""
    os.setsid()  # a Ctrl-C in the terminal is the comparison's to pass on, once
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    gc.freeze()  # what was imported stays; a collection need not look at it
    if cores:
        os.sched_setaffinity(0, cores)
    sys.argv = ["ctpo", *words]
    started = time.monotonic()
    try:
        runpy.run_module("ctpo", run_name="__main__", alter_sys=True)
    finally:
        _account(Path(log).with_name(COST), time.monotonic() - started)


def _account(path: Path, wall_s: float) -> None:
    """Add this process's seconds, its sandbox's included, to those of the parts of the run before it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cost = {"cpu_s": sum(each.ru_utime + each.ru_stime for each in used), "wall_s": wall_s}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        cost = {name: value + before[name] for name, value in cost.items()}
    path.write_text(json.dumps({name: round(value, 2) for name, value in cost.items()}), encoding="utf-8")
