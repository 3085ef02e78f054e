"""Runs of the matrix as processes, within a budget of cores and memory; what is done is not done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import psutil
import yaml

from ctpo.comparison.plan import Cell
from ctpo.errors import UserError

_POLL_S: Final = 0.5
_FIRST_GUESS_MB: Final = 1_500
"""What a run is taken to need until one has ended: torch, transformers and TRL with a tiny model."""
_RECIPE: Final = "recipe.yaml"
_CHANGES_NOTHING: Final = ("rollout_batch_size", "save_steps", "save_total_limit", "transcripts")
GRACE_S: Final = 60.0
"""Seconds a run has for its checkpoint when the comparison is interrupted."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all the runs together may take."""

    cores: int
    memory_mb: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that ended without a result."""

    cell: Cell
    reason: str


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: IO[bytes]


class Runner:
    """Runs cells below one directory.

    Args:
        root: the comparison's directory.
        budget: of all the runs at once; every run counts its recipe's `threads` (1 where unset).
        told: called with each cell that ends, and whether it succeeded.
    """

    def __init__(self, root: Path, budget: Budget, told: Callable[[Cell, bool], None] | None = None) -> None:
        self._root, self._budget = root, budget
        self.told: Callable[[Cell, bool], None] = told or (lambda cell, succeeded: None)
        self._seen_mb, self._ended = 0.0, 0
        self._running: list[_Running] = []

    def directory(self, cell: Cell) -> Path:
        """Where a cell's run lives."""
        return self._root / "runs" / cell.folder / "run"

    def done(self, cell: Cell) -> bool:
        """Whether the cell's run is complete.

        Raises:
            UserError: if a run stands there that was told something else.
        """
        held = self.directory(cell).parent / _RECIPE
        if held.is_file() and _what_it_is(yaml.safe_load(held.read_text(encoding="utf-8"))) != _what_it_is(
            cell.keys
        ):
            raise UserError(
                f"{held.parent} holds a run of another recipe; give the changed comparison another --output"
            )
        return (self.directory(cell) / "summary.json").is_file()

    def run(self, cells: Sequence[Cell]) -> list[Failure]:
        """Run what is not done yet; an interrupt stops every run at a checkpoint and is raised again."""
        waiting = [cell for cell in cells if not self.done(cell)]
        failures: list[Failure] = []
        try:
            while waiting or self._running:
                while waiting and self._fits(waiting[0]):
                    self._start(waiting.pop(0))
                time.sleep(_POLL_S)
                failures += self._reap()
        except BaseException:
            self._stop()
            raise
        return failures

    def _fits(self, cell: Cell) -> bool:
        """Whether another run fits beside those under way; the first one always does."""
        if not self._running:
            return True
        cores = sum(_threads(each.cell) for each in self._running) + _threads(cell)
        needed = self._seen_mb if self._ended else max(self._seen_mb, _FIRST_GUESS_MB)
        memory = (len(self._running) + 1) * needed
        return cores <= self._budget.cores and memory <= self._budget.memory_mb

    def _start(self, cell: Cell) -> None:
        run = self.directory(cell)
        folder = run.parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _RECIPE).write_text(yaml.safe_dump(dict(cell.keys), sort_keys=False), encoding="utf-8")
        words = [str(folder / _RECIPE), f"output_dir={run}"]
        if (run / "config.yaml").is_file():
            words = ["--resume", str(run)]
        log = (folder / "log.txt").open("ab")
        threads = str(_threads(cell))
        process = subprocess.Popen(
            [sys.executable, "-m", "ctpo.cli.main", "train", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on, once
            env={**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._running.append(_Running(cell, process, log))

    def _reap(self) -> list[Failure]:
        failures = []
        for each in list(self._running):
            self._seen_mb = max(self._seen_mb, _memory_mb(each.process.pid))
            if each.process.poll() is None:
                continue
            self._running.remove(each)
            self._ended += 1
            each.log.close()
            succeeded = each.process.returncode == 0 and self.done(each.cell)
            self.told(each.cell, succeeded)
            if not succeeded:
                failures.append(Failure(cell=each.cell, reason=self._reason(each)))
        return failures

    def _reason(self, ended: _Running) -> str:
        path = self.directory(ended.cell).parent / "log.txt"
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit code {ended.process.returncode}: {lines[-1] if lines else 'no output'} ({path})"

    def _stop(self) -> None:
        for each in self._running:
            each.process.send_signal(signal.SIGINT)
        until = time.monotonic() + GRACE_S
        for each in self._running:
            try:
                each.process.wait(max(0.1, until - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: at once
                until = 0.0
                os.killpg(each.process.pid, signal.SIGKILL)
                each.process.wait()
            each.log.close()
        self._running.clear()


def _threads(cell: Cell) -> int:
    return int(cell.keys.get("threads") or 1)


def _what_it_is(keys: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(keys).items() if name not in _CHANGES_NOTHING}


def _memory_mb(pid: int) -> float:
    """Resident memory of a process and its children, tool programs included."""
    try:
        process = psutil.Process(pid)
        everyone = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0.0
    total = 0
    for each in everyone:
        try:
            total += each.memory_info().rss
        except psutil.Error:
            continue
    return total / 1e6
