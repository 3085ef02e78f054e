"""`Sandbox` takes a list of programs and returns a list of results in the same order."""

from __future__ import annotations

import asyncio
import math
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType

from ctpo.sandbox.interpreter import HOLD_ANSWERS
from ctpo.sandbox.isolation.engines import Engine, candidates, unconfined
from ctpo.sandbox.isolation.probe import Check, probe
from ctpo.sandbox.jobs import Batch, Job
from ctpo.sandbox.limits import check_descriptors, check_memory_budget
from ctpo.sandbox.pool import Pool
from ctpo.sandbox.result import SandboxResult, SandboxUnavailable

_MEBIBYTE = 1 << 20
# A program that names one of these goes to the full interpreter, which has imported them or what they need.
_WANTS_FULL = re.compile(
    rb"\b(?:numpy|sympy|mpmath|scipy|pandas|matplotlib|asyncio|concurrent|hashlib|tempfile|shutil|uuid|logging)\b"
)
# The same for modules of the standard library that are rarer, and that would make each fork of the lean one slower.
_WANTS_USUAL = re.compile(
    rb"\b(?:array|ast|cmath|copy|dataclasses|datetime|decimal|fractions|inspect|numbers|queue|statistics|textwrap"
    rb"|typing|unicodedata)\b"
)
_PROBE_TIMEOUT_S = 20.0
_UNSAFE_HINT = "To run programs WITHOUT isolation all the same: Sandbox(unsafe_no_isolation=True)"
_LONGEST_PROGRAM = 1 << 20


class Sandbox:
    """Runs untrusted Python programs, each in a confined process of its own.

    Args:
        timeout_s: how many seconds of wall-clock time a program may take.
        memory_mb: how many MiB of address space a program may add to that of the warm interpreter.
        workers: how many programs run at the same time; by default one per usable core, or fewer if memory is short.
        output_kb: how many KiB a program may write to stdout, and to stderr.
        engine: "auto", "bubblewrap" or "landlock".
        preload: modules that are already imported in every program. They are trusted: they are imported before
            anything is confined.
        hidden: import names of packages that programs cannot read, though they are installed. By default these are the
            packages that hold the answers to tasks (`HOLD_ANSWERS`), and none if `preload` names one of them.
        unsafe_no_isolation: run programs in plain child processes, which can reach this user's files, network and
            environment. Every run warns of it.

    Raises:
        ValueError: if a limit is out of range, or if workers × memory is more than the machine has.
        SandboxUnavailable: if no effective isolation is possible, or if this process may open too few files; the
            message says why and what to do.

    Example:
        with Sandbox(timeout_s=3, memory_mb=512) as sandbox:
            [result] = sandbox.run(["print(3 + 67)"])
        result.status, result.stdout.strip()  # ("ok", "70")
    """

    def __init__(
        self,
        *,
        timeout_s: float = 3.0,
        memory_mb: int = 512,
        workers: int | None = None,
        output_kb: int = 64,
        engine: str = "auto",
        preload: Sequence[str] = (),
        hidden: Sequence[str] | None = None,
        unsafe_no_isolation: bool = False,
    ) -> None:
        _check_limits(timeout_s, memory_mb, workers, output_kb)
        self.timeout_s = float(timeout_s)
        self.memory_mb = memory_mb
        self.workers = check_descriptors(workers, check_memory_budget(workers, memory_mb))
        self.engine: Engine
        self._pid = os.getpid()
        self._pool: Pool | None = None
        self._output_bytes = output_kb << 10
        self._preload = tuple(preload)
        asked_for = {name.partition(".")[0] for name in preload}
        usual = () if asked_for.intersection(HOLD_ANSWERS) else HOLD_ANSWERS
        self._hidden = usual if hidden is None else tuple(hidden)
        self.checks: list[Check] = []
        """The results of the start-up probe; `ctpo sandbox check` prints them."""
        if unsafe_no_isolation:
            self.engine = unconfined(memory_mb * _MEBIBYTE, self._preload)
            self._pool = Pool(self.engine.confinements, self.workers, self._output_bytes)
        else:
            self._start_isolated(engine)

    def _start_isolated(self, name: str) -> None:
        """Start the first engine whose isolation holds.

        Raises:
            SandboxUnavailable: if there is none.
        """
        reasons = []
        for candidate in candidates(name, self.memory_mb * _MEBIBYTE, self._preload, self._hidden):
            if isinstance(candidate, str):
                reasons.append(candidate)
                continue
            self.engine = candidate
            try:
                self._pool = Pool(candidate.confinements, self.workers, self._output_bytes)
                self.checks = probe(self._run_probe, self.memory_mb * _MEBIBYTE)
            except SandboxUnavailable as unavailable:
                self.close() if self._pool is not None else candidate.close()
                reasons.append(f"{candidate.name}: {unavailable}")
                continue
            broken = [f"{check.name} ({check.detail})" for check in self.checks if not check.held]
            if not broken:
                return
            self.close()
            reasons.append(f"{candidate.name} does not hold: {', '.join(broken)}")
        raise SandboxUnavailable(f"no isolation here: {'; '.join(reasons)}. {_UNSAFE_HINT}")

    def _run_probe(self, program: str) -> SandboxResult:
        return self.run([program], timeout_s=_PROBE_TIMEOUT_S)[0]

    def run(
        self, programs: Sequence[str], *, timeout_s: float | None = None, memory_mb: int | None = None
    ) -> list[SandboxResult]:
        """One result for each program, in the same order; returns when all programs have ended.

        Args:
            programs: source texts. Each runs as `__main__` of a process of its own.
            timeout_s: the time limit of these programs, in place of the sandbox's.
            memory_mb: the memory limit of these programs; at most the sandbox's.

        Raises:
            ValueError: if a program is not a string, or if a limit is out of range.
            SandboxUnavailable: if the sandbox is closed or was made before a fork of this process, if its
                interpreters no longer start, or if for two seconds no process or file descriptor is free.
        """
        done = threading.Event()
        batch, jobs = self._batch(programs, timeout_s, memory_mb, lambda _: done.set())
        if jobs:
            self._submit(jobs)
            try:
                done.wait()
            except BaseException:
                batch.cancelled = True
                raise
        return _results(batch)

    async def arun(
        self, programs: Sequence[str], *, timeout_s: float | None = None, memory_mb: int | None = None
    ) -> list[SandboxResult]:
        """The same as `run`, for asyncio: the event loop continues while the programs run."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def on_done(_: Batch) -> None:
            loop.call_soon_threadsafe(finish)

        batch, jobs = self._batch(programs, timeout_s, memory_mb, on_done)
        if jobs:
            self._submit(jobs)
            try:
                await done
            except BaseException:
                batch.cancelled = True
                raise
        return _results(batch)

    def close(self) -> None:
        """End every process of the sandbox. A second call does nothing."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.close()
            self.engine.close()
        self._pool = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pool", None) is not None and not sys.is_finalizing():
            self.close()

    def _submit(self, jobs: list[Job]) -> None:
        if self._pid != os.getpid():
            raise SandboxUnavailable(
                "this Sandbox was made before a fork; make one in the process that uses it"
            )
        if self._pool is None:
            raise SandboxUnavailable("the sandbox was closed; make another")
        if not self.engine.isolated:
            caller = sys._getframe(2)
            # With its own registry, the warning is shown on every run, and not once per line of code.
            warnings.warn_explicit(
                "programs run WITHOUT isolation (unsafe_no_isolation=True): they can read, write, send and "
                "kill whatever this user can",
                RuntimeWarning,
                caller.f_code.co_filename,
                caller.f_lineno,
                registry={},
            )
        self._pool.submit(jobs)

    def _batch(
        self,
        programs: Sequence[str],
        timeout_s: float | None,
        memory_mb: int | None,
        on_done: Callable[[Batch], None],
    ) -> tuple[Batch, list[Job]]:
        if isinstance(programs, str | bytes):
            raise ValueError(
                f"programs must be a list of source texts, not one {type(programs).__name__}; use [program]"
            )
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        memory_mb = self.memory_mb if memory_mb is None else memory_mb
        _check_limits(timeout_s, memory_mb, None, 1)
        if memory_mb > self.memory_mb:
            raise ValueError(
                f"memory_mb={memory_mb} is more than the sandbox's {self.memory_mb}; make a bigger one"
            )
        batch = Batch(timeout_s, memory_mb * _MEBIBYTE, [None] * len(programs), on_done)
        jobs = []
        for index, program in enumerate(programs):
            if not isinstance(program, str):
                raise ValueError(f"programs[{index}] is a {type(program).__name__}, not a source text (str)")
            text = program.encode("utf-8", "surrogatepass")
            if len(text) > _LONGEST_PROGRAM:
                # Programs are written by a policy, so this is the program's error and not the caller's.
                message = f"program of {len(text)} bytes; the limit is {_LONGEST_PROGRAM}\n"
                batch.results[index] = SandboxResult("error", "", message, 0.0)
                continue
            kind = "usual" if _WANTS_USUAL.search(text) else "lean"
            if self._preload or _WANTS_FULL.search(text):
                kind = "full"
            jobs.append(Job(batch, index, text, kind))
        batch.missing = len(jobs)
        return batch, jobs


def _results(batch: Batch) -> list[SandboxResult]:
    if batch.failure is not None:
        raise SandboxUnavailable(str(batch.failure)) from batch.failure
    results = [result for result in batch.results if result is not None]
    assert len(results) == len(batch.results), "a batch ended with a result missing"
    return results


def _check_limits(timeout_s: float, memory_mb: int, workers: int | None, output_kb: int) -> None:
    if not (isinstance(timeout_s, int | float) and math.isfinite(timeout_s) and timeout_s > 0):
        raise ValueError(f"timeout_s={timeout_s!r} must be a positive number of seconds")
    for name, value, least in (
        ("memory_mb", memory_mb, 16),
        ("output_kb", output_kb, 1),
        ("workers", workers, 1),
    ):
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number, at least {least}")
