"""The pool is a thread that gives programs to zygotes, watches time and output, and puts results in order.

The thread owns every process and descriptor. A parent-death signal follows the thread that started a process. So the
zygotes' signals fire when this process dies, and not when a caller's thread ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from ctpo.sandbox.jobs import Job, judge
from ctpo.sandbox.result import SandboxResult, SandboxUnavailable, Status
from ctpo.sandbox.worker import SPARES, Child, Confinement, Exit, Zygote

_WATCH_AFTER_S = 0.02  # most programs end sooner and need no epoll registration
_START_TIMEOUT_S = 120.0
_KILL_TIMEOUT_S = 5.0
_RETRY_S = 0.05  # until a fork or a start is tried again that the system has refused
_SHORTAGE_S = 2.0  # how long programs wait for it before they are refused


@dataclass(eq=False)
class Slot:
    """A place for one running program, with a zygote of each kind that has been needed so far."""

    zygotes: dict[str, Zygote] = field(default_factory=dict)
    job: Job | None = None
    zygote: Zygote | None = None


class Pool:
    """Runs batches of programs in `workers` slots until it is closed.

    Args:
        confinements: how the zygotes of each kind ("lean", "usual", "full") are started.
        workers: how many programs run at the same time.
        output_bytes: the limit of stdout, and of stderr.

    Raises:
        SandboxUnavailable: if the interpreters do not start.
    """

    def __init__(self, confinements: dict[str, Confinement], workers: int, output_bytes: int) -> None:
        self._confinements = confinements
        self._output_bytes = output_bytes
        self._slots = [Slot() for _ in range(workers)]
        self._queue: deque[Job] = deque()
        self._inbox: deque[list[Job]] = deque()
        self._zygotes: dict[int, tuple[Slot, str, Zygote]] = {}  # by the descriptor of the control socket
        self._outputs: dict[int, Slot] = {}  # by the descriptor of a watched pipe: the slot of its program
        self._to_start = [(slot, "lean") for slot in self._slots]
        self._deaths: dict[int, Zygote] = {}  # by the descriptor of its process
        self._failures = 0
        self._short_since: float | None = None  # when the system began to refuse what programs need
        self._retry_at = 0.0
        self._closing = False
        self._failed: list[Exception] = []  # the thread's error; at most one
        self._poll = select.epoll()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._poll.register(self._wake_reader, select.EPOLLIN)
        self._started = threading.Event()
        _POOLS.add(self)
        self._thread = threading.Thread(target=self._main, name="ctpo-sandbox", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failed:
            self.close()
            raise self._failed[0]

    # --- called from any thread -----------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add jobs to the end of the queue.

        Raises:
            SandboxUnavailable: if the pool is closed or has failed.
        """
        self._inbox.append(list(jobs))
        self._wake()
        if self._failed:
            raise self._failed[0]

    def close(self) -> None:
        """End every zygote and wait until they are gone."""
        self._closing = True
        self._wake()
        self._thread.join()
        _POOLS.discard(self)
        # Each number is forgotten before it is closed: see `Child.close_end`.
        writer, self._wake_writer = self._wake_writer, -1
        if writer >= 0:
            os.close(writer)

    def processes(self) -> list[int]:
        """The process ids of the zygotes' outermost processes."""
        return [zygote.process.pid for _, _, zygote in list(self._zygotes.values())]

    def leave_to_parent(self) -> None:
        """In a fork of this process, where the thread is missing: close the copies of all descriptors."""
        # The kernel's list behind this descriptor is the parent's, so nothing may be unregistered from it here.
        self._outputs.clear()
        self._poll.close()
        for _, _, zygote in list(self._zygotes.values()):
            zygote.leave_to_parent()
        ends = self._wake_reader, self._wake_writer
        self._wake_reader = self._wake_writer = -1
        for fd in ends:
            if fd >= 0:
                os.close(fd)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_writer, b"x")

    # --- the thread -----------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._dispatch()
            while not self._closing:
                for fd, _ in self._poll.poll(self._seconds_to_next_deadline()):
                    self._handle(fd)
                self._check_deadlines()
                self._dispatch()
        except Exception as error:
            self._failed.append(error)
        finally:
            self._started.set()
            self._end()

    def _end(self) -> None:
        if not self._failed:
            self._failed.append(SandboxUnavailable("the sandbox was closed"))
        failure = self._failed[0]
        for slot in self._slots:
            if slot.job is not None:
                slot.job.batch.fail(failure)
        self._empty_inbox()
        for job in self._queue:
            job.batch.fail(failure)
        for _, _, zygote in self._zygotes.values():
            zygote.request_end()
        for _, _, zygote in self._zygotes.values():
            # One that is still warming up does not listen yet, and has no children to lose.
            zygote.end(2.0 if zygote.ready else 0.0)
        self._zygotes.clear()
        self._empty_inbox()
        for job in self._queue:
            job.batch.fail(failure)
        self._poll.close()
        reader, self._wake_reader = self._wake_reader, -1
        os.close(reader)

    def _start(self, slot: Slot, kind: str) -> None:
        zygote = Zygote(self._confinements[kind])
        slot.zygotes[kind] = zygote
        self._zygotes[zygote.control.fileno()] = (slot, kind, zygote)
        self._deaths[zygote.death] = zygote
        self._poll.register(zygote.control.fileno(), select.EPOLLIN)
        self._poll.register(zygote.death, select.EPOLLIN)

    def _seconds_to_next_deadline(self) -> float:
        """The seconds until a deadline must be checked even if nothing happens; -1 for never."""
        now, soonest = time.monotonic(), float("inf")
        for slot in self._slots:
            if slot.zygote is not None and (child := slot.zygote.running) is not None:
                soonest = min(soonest, child.deadline)
                if child.verdict is None:
                    soonest = min(soonest, child.look_at)
                if not child.watched:
                    soonest = min(soonest, child.started + _WATCH_AFTER_S)
        for _, _, zygote in self._zygotes.values():
            if not zygote.ready:
                soonest = min(soonest, zygote.started + _START_TIMEOUT_S)
        if self._short_since is not None:
            soonest = min(soonest, self._retry_at)
        return -1 if soonest == float("inf") else max(0.0, soonest - now) + 0.0005

    def _handle(self, fd: int) -> None:
        if fd == self._wake_reader:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
            self._empty_inbox()
        elif fd in self._zygotes:
            self._receive(*self._zygotes[fd])
        elif fd in self._deaths:
            dead = self._zygotes[self._deaths[fd].control.fileno()]
            self._receive(*dead)
            if fd in self._deaths:
                self._replace_dead(*dead)
        elif (slot := self._outputs.get(fd)) is not None and slot.zygote and slot.zygote.running:
            self._read(slot, slot.zygote, slot.zygote.running)

    def _empty_inbox(self) -> None:
        while self._inbox:
            self._queue.extend(self._inbox.popleft())

    def _receive(self, slot: Slot, kind: str, zygote: Zygote) -> None:
        was_ready = zygote.ready
        exits = zygote.receive()
        if exits is None:
            self._replace_dead(slot, kind, zygote)
            return
        if zygote.ready and not was_ready:
            self._failures = 0
            self._started.set()
        for ended in exits:
            self._reaped(slot, zygote, ended)

    def _replace_dead(self, slot: Slot, kind: str, zygote: Zygote) -> None:
        """Start another zygote in place of one that has died. The program that it was running is lost."""
        job = slot.job if slot.zygote is zygote else None
        child = zygote.running
        for fd in (zygote.control.fileno(), zygote.death):
            self._poll.unregister(fd)
        del self._zygotes[zygote.control.fileno()]
        del self._deaths[zygote.death]
        del slot.zygotes[kind]
        complaint = zygote.end(0.0)
        if not zygote.ready:
            self._failures += 1
        if self._failures >= 3 or not self._started.is_set():
            raise SandboxUnavailable(
                f"the sandbox's {kind} interpreter does not start: {complaint or 'it died'}"
            )
        if job is not None and child is not None:
            slot.job = slot.zygote = None
            wall_s = time.monotonic() - child.started
            self._lost(job, SandboxResult("lost", "", "", wall_s))
        self._to_start.append((slot, kind))

    # --- programs -------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Start what is missing, give jobs to free slots, and wait if the system has nothing left for that now."""
        if self._short_since is not None and time.monotonic() < self._retry_at:
            return
        try:
            self._advance()
            self._short_since = None
        except OSError as shortage:
            self._wait_for_better(shortage)

    def _wait_for_better(self, shortage: OSError) -> None:
        """Try again soon. What waits longer than a while is refused, so that no caller waits for ever."""
        if not self._started.is_set():
            raise SandboxUnavailable(f"the sandbox's interpreter cannot be started: {shortage}")
        now = time.monotonic()
        self._retry_at = now + _RETRY_S
        if self._short_since is None:
            self._short_since = now
        elif now > self._short_since + _SHORTAGE_S:
            refusal = SandboxUnavailable(
                f"the sandbox cannot start a program now: {shortage}; close files, or raise the limit (ulimit -n)"
            )
            while self._queue:
                self._queue.popleft().batch.fail(refusal)

    def _advance(self) -> None:
        """Start missing zygotes, give each free slot the next job if its zygote is ready, or refill the spares.

        Raises:
            OSError: if the system has no process or descriptor left. What has not been done yet is done next time.
        """
        while self._to_start:
            self._start(*self._to_start[-1])
            self._to_start.pop()
        for slot in self._slots:
            while slot.job is None and self._queue:
                job = self._queue[0]
                if job.batch.cancelled or job.batch.failure is not None:
                    self._queue.popleft()
                    continue
                zygote = slot.zygotes.get(job.kind)
                if zygote is None:
                    self._start(slot, job.kind)
                    break
                if not zygote.ready:
                    break
                if not zygote.spares:
                    zygote.fork()
                self._queue.popleft()
                self._begin(slot, zygote, job)
                if self._queue and not zygote.spares:
                    # The next child is forked while this program runs.
                    zygote.fork()
        if not self._queue:
            for slot in self._slots:
                for zygote in slot.zygotes.values():
                    while zygote.ready and len(zygote.spares) < SPARES:
                        zygote.fork()

    def _begin(self, slot: Slot, zygote: Zygote, job: Job) -> None:
        child = zygote.spares.popleft()
        slot.job, slot.zygote, zygote.running = job, zygote, child
        batch = job.batch
        # Threads that release the interpreter's lock could use every core. Together they get the time of one core.
        cpu_s = ceil(batch.timeout_s) + 1
        child.begin(job.program, batch.memory_bytes, cpu_s, batch.timeout_s)
        if child.unsent:
            self._watch(slot, child)

    def _watch(self, slot: Slot, child: Child) -> None:
        child.watched = True
        child.forget = self._forget
        for fd, events in (
            (child.out, select.EPOLLIN),
            (child.err, select.EPOLLIN),
            (child.code, select.EPOLLOUT),
        ):
            if fd >= 0:
                self._poll.register(fd, events)
                self._outputs[fd] = slot

    def _unwatch(self, child: Child) -> None:
        for fd in (child.out, child.err, child.code):
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        # epoll forgets a closed descriptor by itself, but not while a fork of this process has a copy of it.
        if self._outputs.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _read(self, slot: Slot, zygote: Zygote, child: Child) -> None:
        if child.unsent:
            child.feed()
        if child.drain(self._output_bytes):
            self._stop(zygote, child, "output_limit")

    def _stop(self, zygote: Zygote, child: Child, verdict: Status) -> None:
        """Kill a program and record the reason. The slot becomes free when its child has ended."""
        if child.verdict is None:
            child.verdict = verdict
            child.deadline = time.monotonic() + _KILL_TIMEOUT_S
            self._unwatch(child)
            child.watched = True
            zygote.kill(child)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            zygote = slot.zygote
            if zygote is None or (child := zygote.running) is None:
                continue
            if now >= child.deadline:
                if child.verdict is None:
                    self._stop(zygote, child, "timeout")
                else:
                    zygote.process.kill()  # it does not answer; the rest follows at the end of its socket
                    child.deadline = float("inf")
                continue
            if not child.watched and now >= child.started + _WATCH_AFTER_S:
                self._watch(slot, child)
            if child.verdict is None and now >= child.look_at and zygote.takes_too_much(child):
                child.errors += b"MemoryError\n"
                self._stop(zygote, child, "memory")
        for _, kind, zygote in self._zygotes.values():
            if not zygote.ready and now > zygote.started + _START_TIMEOUT_S:
                raise SandboxUnavailable(
                    f"the sandbox's {kind} interpreter took over {_START_TIMEOUT_S:.0f} s to start"
                )

    def _reaped(self, slot: Slot, zygote: Zygote, ended: Exit) -> None:
        child = zygote.running
        if child is None or child.identity != ended.identity:
            self._spare_died(zygote, ended)
            return
        job = slot.job
        assert job is not None
        wall_s = time.monotonic() - child.started
        over = child.drain(self._output_bytes)
        child.close()
        zygote.running = slot.job = slot.zygote = None
        result = judge(child, ended, wall_s, over, self._output_bytes)
        self._failures = 0
        if result.status == "lost":
            self._lost(job, result)
        else:
            job.batch.put(job.index, result)

    def _spare_died(self, zygote: Zygote, ended: Exit) -> None:
        for child in zygote.spares:
            if child.identity == ended.identity:
                child.drain(4096)
                child.close()
                zygote.spares.remove(child)
                self._failures += 1
                if self._failures >= 3 * SPARES:
                    reason = child.errors.decode("utf-8", "replace").strip()
                    raise SandboxUnavailable(f"the sandbox's children do not start: {reason or 'they died'}")
                return

    def _lost(self, job: Job, result: SandboxResult) -> None:
        """Run a program again that was killed from outside. The second time, report it as lost."""
        job.attempts += 1
        if job.attempts < 2:
            self._queue.appendleft(job)
        else:
            job.batch.put(job.index, result)


_POOLS: set[Pool] = set()
"""The pools that are open in this process."""


def _leave_pools_to_parent() -> None:
    """In a process that has just been forked: give up every pool, so that nothing of theirs stays open here.

    The sandboxes refuse to work here (`Sandbox.run`). A pool works on in the parent in any case, also if this never
    runs because a library has forked without Python: no message depends on an end of file.
    """
    for pool in _POOLS:
        with contextlib.suppress(OSError):
            pool.leave_to_parent()
    _POOLS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_pools_to_parent)
