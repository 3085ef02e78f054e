"""Running the matrix as processes, within a budget of cores and memory. Finished runs are not run again."""

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

from ctpo.engines.choice import LOCAL, split_engine
from ctpo.errors import UserError
from ctpo.lab.comparison.launch import COST, start
from ctpo.lab.comparison.plan import Cell
from ctpo.lab.comparison.scores_file import ScoresFile
from ctpo.runs.atomic import write_text
from ctpo.runs.identity import deciding_settings
from ctpo.runs.scores import Score, read_score
from ctpo.training.config.recipe import read_recipe

_POLL_S: Final = 0.5
_MEMORY_POLL_S: Final = 5.0
"""Seconds between measurements of the runs' memory. Each one goes through every process of the machine."""
_FIRST_GUESS_MB: Final = 1_500
"""The memory that a run is assumed to need until one has ended: torch, transformers and TRL with a tiny model."""
_RECIPE: Final = "recipe.yaml"
_LOG: Final = "log.txt"
_SHARED: Final = "shared"
GRACE_S: Final = 60.0
"""Seconds that a run has to write its checkpoint when the comparison is interrupted."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The cores and the memory that all runs together may take."""

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
    """Runs the cells of a comparison below one directory.

    Args:
        root: the comparison's directory.
        budget: for all runs together. Every run takes as many cores as its recipe has `threads` (1 by default). It is
            bound to cores of its own if this process may use as many cores as the budget has.
        scores: of runs that were finished elsewhere or before. Those finished here are added.
        on_end: called with each cell that ends, and whether it succeeded.
        trust: whether the runs obey the unsafe settings of their recipes.
    """

    def __init__(
        self,
        root: Path,
        budget: Budget,
        scores: ScoresFile | None = None,
        on_end: Callable[[Cell, bool], None] | None = None,
        *,
        trust: bool = False,
    ) -> None:
        self.root, self._budget, self._scores, self._trust = root, budget, scores, trust
        self.on_end: Callable[[Cell, bool], None] = on_end or (lambda cell, succeeded: None)
        self._largest_mb, self._ended = 0.0, 0
        self._running: list[_Running] = []
        self._free = _cores(budget.cores)
        self._measured_at = 0.0

    def directory(self, cell: Cell) -> Path:
        """Return the directory of a cell's run."""
        return self.root / "runs" / cell.folder / "run"

    def done(self, cell: Cell) -> bool:
        """Return whether the cell's run is finished.

        Raises:
            UserError: if its directory holds a run with another recipe.
        """
        if self._scores is not None and self._scores.score(cell) is not None:
            return True
        held = self.directory(cell).parent / _RECIPE
        if held.is_file() and deciding_settings(read_recipe(held)) != deciding_settings(cell.keys):
            raise UserError(
                f"{held.parent} holds a run of another recipe; give the changed comparison another --output"
            )
        return (self.directory(cell) / "summary.json").is_file()

    def score(self, cell: Cell) -> Score | None:
        """Return the scores of a cell, from the file of scores or from its run; None if it is not finished."""
        written = self._scores.score(cell) if self._scores is not None else None
        return written or read_score(self.directory(cell))

    def run(self, cells: Sequence[Cell]) -> list[Failure]:
        """Run the cells that are not finished, and return those that failed.

        An interrupt stops every run at a checkpoint, and is then raised again.
        """
        waiting = []
        for cell in cells:
            if not self.done(cell):
                waiting.append(cell)
            elif self._scores is not None and self._scores.score(cell) is None:
                self._add_score(cell)  # the comparison was stopped before it wrote them
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
        """Return whether this run fits beside those under way. A run alone always fits."""
        if not self._running:
            return True
        cores = sum(_threads(each.cell) for each in self._running) + _threads(cell)
        needed = self._largest_mb if self._ended else max(self._largest_mb, _FIRST_GUESS_MB)
        memory = (len(self._running) + 1) * needed
        return cores <= self._budget.cores and memory <= self._budget.memory_mb

    def _start(self, cell: Cell) -> None:
        run = self.directory(cell)
        folder = run.parent
        write_text(folder / _RECIPE, yaml.safe_dump(dict(cell.keys), sort_keys=False))
        words = [str(folder / _RECIPE), f"output_dir={run}"]
        if (run / "config.yaml").is_file():
            words = ["--resume", str(run)]
        count = _threads(cell)
        cores, self._free = self._free[:count], self._free[count:]
        if _is_local(cell):
            words.append(f"shared={self.root / _SHARED}")
        process = start(
            ["train", *words, *(["--trust"] if self._trust else [])],
            folder / _LOG,
            cores if len(cores) == count else [],
        )
        self._running.append(_Running(cell, process, cores))

    def _reap(self) -> list[Failure]:
        failures = []
        if time.monotonic() - self._measured_at > _MEMORY_POLL_S:
            self._measured_at = time.monotonic()
            self._largest_mb = max(
                [self._largest_mb, *(_memory_mb(_pid(each.process)) for each in self._running)]
            )
        for each in list(self._running):
            if each.process.exitcode is None:
                continue
            self._running.remove(each)
            self._free += each.cores
            self._ended += 1
            succeeded = each.process.exitcode == 0 and self.done(each.cell)
            if succeeded:
                self._add_score(each.cell)
            self.on_end(each.cell, succeeded)
            if not succeeded:
                failures.append(Failure(cell=each.cell, reason=self._reason(each)))
        return failures

    def _add_score(self, cell: Cell) -> None:
        """Add a run's scores and its processor time to the file of scores."""
        run = self.directory(cell)
        score = read_score(run)
        if self._scores is not None and score is not None:
            path = run.parent / COST
            cost = json.loads(path.read_text(encoding="utf-8"))["cpu_s"] if path.is_file() else None
            self._scores.add(cell, score, cost if _is_local(cell) else None)

    def _reason(self, ended: _Running) -> str:
        path = self.directory(ended.cell).parent / _LOG
        log = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = log.strip().splitlines()
        return f"exit code {ended.process.exitcode}: {lines[-1] if lines else 'no output'} ({path})"

    def _stop(self) -> None:
        for each in self._running:
            os.kill(_pid(each.process), signal.SIGINT)
        until = time.monotonic() + GRACE_S
        for each in self._running:
            try:
                each.process.join(max(0.1, until - time.monotonic()))
            except KeyboardInterrupt:  # a second Ctrl-C ends the runs at once
                until = 0.0
            if each.process.exitcode is None:
                os.killpg(_pid(each.process), signal.SIGKILL)
                each.process.join()
        self._running.clear()


def _pid(process: BaseProcess) -> int:
    assert process.pid is not None, "the process was started"
    return process.pid


def _cores(count: int) -> list[int]:
    """Return the numbers of so many cores that this process may use; an empty list if there are fewer."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return allowed[:count] if len(allowed) >= count else []


def _is_local(cell: Cell) -> bool:
    """Whether a run trains in its own process. Processes of Ray share no results and hide what they cost."""
    return split_engine(cell.keys)[0].name == LOCAL


def _threads(cell: Cell) -> int:
    return int(cell.keys.get("threads") or 1)


def _memory_mb(pid: int) -> float:
    """Return the resident memory of a process and of all its children, tool programs included, in MB."""
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
