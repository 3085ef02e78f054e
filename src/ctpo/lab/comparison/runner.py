"""Runs of the matrix as processes, within a budget of cores and memory; what is done is not done again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import psutil
import yaml

from ctpo.errors import UserError
from ctpo.lab.comparison.book import Book
from ctpo.lab.comparison.launch import COST, start
from ctpo.lab.comparison.plan import Cell
from ctpo.runs.identity import deciding_settings
from ctpo.runs.scores import Score, read_score

_POLL_S: Final = 0.5
_WEIGH_S: Final = 5.0
"""Seconds between looks at the memory of all runs, each of which goes through every process of the machine."""
_FIRST_GUESS_MB: Final = 1_500
"""What a run is taken to need until one has ended: torch, transformers and TRL with a tiny model."""
_RECIPE: Final = "recipe.yaml"
_LOG: Final = "log.txt"
_SHARED: Final = "shared"
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
    process: BaseProcess
    cores: list[int]


class Runner:
    """Runs cells below one directory.

    Args:
        root: the comparison's directory.
        budget: of all the runs at once; every run counts its recipe's `threads` (1 where unset), and is bound to as
            many cores of its own where there are as many as the budget says.
        book: scores of runs done elsewhere or before, to which those done here are added.
        told: called with each cell that ends, and whether it succeeded.
    """

    def __init__(
        self,
        root: Path,
        budget: Budget,
        book: Book | None = None,
        told: Callable[[Cell, bool], None] | None = None,
    ) -> None:
        self.root, self._budget, self._book = root, budget, book
        self.told: Callable[[Cell, bool], None] = told or (lambda cell, succeeded: None)
        self._seen_mb, self._ended = 0.0, 0
        self._running: list[_Running] = []
        self._free = _cores(budget.cores)
        self._weighed = 0.0

    def directory(self, cell: Cell) -> Path:
        """Where a cell's run lives."""
        return self.root / "runs" / cell.folder / "run"

    def done(self, cell: Cell) -> bool:
        """Whether the cell's run is complete.

        Raises:
            UserError: if a run stands there that was told something else.
        """
        if self._book is not None and self._book.score(cell) is not None:
            return True
        held = self.directory(cell).parent / _RECIPE
        if held.is_file() and deciding_settings(
            yaml.safe_load(held.read_text(encoding="utf-8"))
        ) != deciding_settings(cell.keys):
            raise UserError(
                f"{held.parent} holds a run of another recipe; give the changed comparison another --output"
            )
        return (self.directory(cell) / "summary.json").is_file()

    def score(self, cell: Cell) -> Score | None:
        """The figures of a finished cell, from the book or its run; None where it is not finished."""
        written = self._book.score(cell) if self._book is not None else None
        return written or read_score(self.directory(cell))

    def run(self, cells: Sequence[Cell]) -> list[Failure]:
        """Run what is not done yet; an interrupt stops every run at a checkpoint and is raised again."""
        waiting = [cell for cell in cells if not self.done(cell)]
        failures: list[Failure] = []
        try:
            while waiting or self._running:
                while waiting and self._fits(waiting[0]):
                    self._start(waiting.pop(0))
                wait([each.process.sentinel for each in self._running], _POLL_S)
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
        count = _threads(cell)
        cores, self._free = self._free[:count], self._free[count:]
        process = start(
            ["train", *words, f"shared={self.root / _SHARED}"],
            folder / _LOG,
            cores if len(cores) == count else [],
        )
        self._running.append(_Running(cell, process, cores))

    def _reap(self) -> list[Failure]:
        failures = []
        if time.monotonic() - self._weighed > _WEIGH_S:
            self._weighed = time.monotonic()
            self._seen_mb = max([self._seen_mb, *(_memory_mb(_pid(each.process)) for each in self._running)])
        for each in list(self._running):
            if each.process.exitcode is None:
                continue
            self._running.remove(each)
            self._free += each.cores
            self._ended += 1
            succeeded = each.process.exitcode == 0 and self.done(each.cell)
            if succeeded:
                self._enter(each.cell)
            self.told(each.cell, succeeded)
            if not succeeded:
                failures.append(Failure(cell=each.cell, reason=self._reason(each)))
        return failures

    def _enter(self, cell: Cell) -> None:
        """Write a run's figures, and what it cost, into the book."""
        run = self.directory(cell)
        found = read_score(run)
        if self._book is not None and found is not None:
            cost = json.loads((run.parent / COST).read_text(encoding="utf-8"))
            self._book.enter(cell, found, cost["cpu_s"])

    def _reason(self, ended: _Running) -> str:
        path = self.directory(ended.cell).parent / _LOG
        said = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = said.strip().splitlines()
        return f"exit code {ended.process.exitcode}: {lines[-1] if lines else 'no output'} ({path})"

    def _stop(self) -> None:
        for each in self._running:
            os.kill(_pid(each.process), signal.SIGINT)
        until = time.monotonic() + GRACE_S
        for each in self._running:
            try:
                each.process.join(max(0.1, until - time.monotonic()))
            except KeyboardInterrupt:  # a second Ctrl-C: at once
                until = 0.0
            if each.process.exitcode is None:
                os.killpg(_pid(each.process), signal.SIGKILL)
                each.process.join()
        self._running.clear()


def _pid(process: BaseProcess) -> int:
    assert process.pid is not None, "it was started"
    return process.pid


def _cores(count: int) -> list[int]:
    """As many cores that this process may use; none where there are fewer."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return allowed[:count] if len(allowed) >= count else []


def _threads(cell: Cell) -> int:
    return int(cell.keys.get("threads") or 1)


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
