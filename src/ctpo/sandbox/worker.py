"""The supervisor's side of one zygote process: starting it, requesting children, and receiving their ends."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ctpo.sandbox.inside.wire import EXITED, HEADER, REQUEST
from ctpo.sandbox.page_tables import LOOK_EVERY_S, allowance, most_held
from ctpo.sandbox.result import Status

_MESSAGE_BYTES = 1 << 16
_LAST_STANDARD = 2
SPARES = 4
"""How many spare children each zygote keeps while no program waits."""
DESCRIPTORS = 3 + 3 * (SPARES + 1)
"""How many descriptors a zygote takes: socket, process, output, and three pipes for each spare and for the program."""


@dataclass(frozen=True)
class Confinement:
    """How one kind of zygote is started, and how its children are confined.

    Args:
        command: makes the full command line from the zygote's own arguments.
        environment: the zygote's environment.
        settings: the JSON configuration that the zygote reads first (see `inside.wire.Configuration`).
        inherited: the file descriptors that the command line refers to.
    """

    command: Callable[[list[str]], list[str]]
    environment: dict[str, str]
    settings: dict[str, object]
    inherited: tuple[int, ...] = ()


def above_standard(fd: int) -> int:
    """The same open file with a number above 2. A child's own standard streams would take the place of the others.

    The file gets such a number if this process has closed a standard stream of its own.

    Raises:
        OSError: if no file descriptor is free. The given one is closed in any case, unless it is returned.
    """
    low: list[int] = []
    try:
        while fd <= _LAST_STANDARD:
            low.append(fd)
            fd = os.dup(fd)
    finally:
        for taken in low:
            os.close(taken)
    return fd


def encode_filter(program: bytes) -> str:
    """A BPF program in the form that the configuration carries."""
    return base64.b64encode(program).decode()


@dataclass(eq=False)
class Child:
    """One forked and confined child. It waits as a spare and then runs one program."""

    identity: int
    code: int
    out: int
    err: int
    output: bytearray = field(default_factory=bytearray)
    errors: bytearray = field(default_factory=bytearray)
    started: float = 0.0
    deadline: float = float("inf")
    cpu_limit_s: int = 0
    memory_bytes: int = 0
    look_at: float = float("inf")  # when its memory is looked at next
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    watched: bool = False
    forget: Callable[[int], None] | None = None
    """Called with the number of each of these descriptors before it is closed."""
    verdict: Status | None = None

    def close(self) -> None:
        """Close those of the supervisor's pipe ends that are still open."""
        for name in ("code", "out", "err"):
            self.close_end(name)

    def close_end(self, name: str) -> None:
        fd: int = getattr(self, name)
        if fd >= 0:
            # Forgotten first: a fork during the call would close another file that has got the same number.
            setattr(self, name, -1)
            if self.forget is not None:
                self.forget(fd)
            os.close(fd)

    def begin(self, program: bytes, memory_bytes: int, cpu_s: int, timeout_s: float) -> None:
        """Send the program. What the pipe does not take at once stays in `unsent`."""
        self.started = time.monotonic()
        self.cpu_limit_s = cpu_s
        self.memory_bytes = memory_bytes
        self.look_at = self.started + LOOK_EVERY_S
        self.deadline = self.started + timeout_s
        self.unsent = memoryview(HEADER.pack(memory_bytes, cpu_s, len(program)) + program)
        os.set_blocking(self.code, False)
        self.feed()

    def feed(self) -> None:
        """Send more of the program. Close the pipe at the program's end, or when the child no longer reads."""
        try:
            while self.unsent:
                self.unsent = self.unsent[os.write(self.code, self.unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unsent = memoryview(b"")
        self.close_end("code")

    def drain(self, limit: int) -> bool:
        """Read the output that is there. True if stdout or stderr is longer than `limit` bytes; the rest is dropped."""
        over = False
        for name, kept in (("out", self.output), ("err", self.errors)):
            while (fd := getattr(self, name)) >= 0 and len(kept) <= limit:
                try:
                    data = os.read(fd, min(1 << 16, limit + 1 - len(kept)))
                except BlockingIOError:
                    break
                if not data:
                    self.close_end(name)
                kept += data
            over = over or len(kept) > limit
        return over


@dataclass(frozen=True)
class Exit:
    """How a child ended: its status as `os.wait` gives it, and its CPU seconds."""

    identity: int
    status: int
    cpu_s: float


class Zygote:
    """A running zygote, its spare children, and the child that is running a program.

    Raises:
        OSError: if it cannot be started now, for example because no file descriptor is free.
    """

    def __init__(self, confinement: Confinement) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        process = None
        try:
            theirs = socket.socket(fileno=above_standard(theirs.detach()))
            with theirs:
                # A new interpreter and not a fork, because the supervisor may hold threads, a GPU and a policy's
                # weights. With a session of its own, the terminal's Ctrl-C reaches the supervisor only.
                process = subprocess.Popen(
                    confinement.command([str(theirs.fileno())]),
                    env=confinement.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,  # the streams of programs are opened on a pipe, and so behave like one
                    stderr=subprocess.STDOUT,
                    bufsize=0,
                    pass_fds=[theirs.fileno(), *confinement.inherited],
                    start_new_session=True,
                    cwd="/",
                )
            # It tells of the zygote's death, even if a fork of this process has a copy of the zygote's socket.
            self.death = os.pidfd_open(process.pid)
        except OSError:
            self.control.close()
            if process is not None:
                _end(process, 0.0)
            raise
        self.process = process
        with contextlib.suppress(OSError):  # it has died already; the pool sees that at `death`
            self.control.send(json.dumps(confinement.settings | {"supervisor": os.getpid()}).encode())
        self.ready = False
        self.started = time.monotonic()
        self.packages: list[str] = []
        self.address_space = 0  # of the warm interpreter in bytes; 0 if programs have no limit
        self.spares: deque[Child] = deque()
        self.running: Child | None = None
        self._next = 0

    def fork(self) -> None:
        """Request one more spare child.

        Raises:
            OSError: if no file descriptor is free, or if the zygote does not answer.
        """
        ours, theirs = [], []
        try:
            for flow in ("in", "out", "out"):
                reader, writer = os.pipe()
                ours.append(writer if flow == "in" else reader)
                theirs.append(reader if flow == "in" else writer)
            self._next += 1
            socket.send_fds(self.control, [REQUEST.pack(b"F", self._next)], theirs)
        except OSError:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        for fd in ours[1:]:
            os.set_blocking(fd, False)
        code, out, err = ours
        self.spares.append(Child(self._next, code, out, err))

    def takes_too_much(self, child: Child) -> bool:
        """Whether the running child takes more memory, with its page tables, than it may. It is due to be looked at."""
        child.look_at = time.monotonic() + LOOK_EVERY_S
        most = self.address_space + child.memory_bytes + allowance(child.memory_bytes)
        return self.address_space > 0 and most_held(self.process.pid) > most

    def kill(self, child: Child) -> None:
        """Request that a child is killed. The answer is its `Exit`."""
        with contextlib.suppress(OSError):
            self.control.send(REQUEST.pack(b"K", child.identity))

    def receive(self) -> list[Exit] | None:
        """The exits that the zygote reports; None once it is dead and everything from before has been read."""
        exits: list[Exit] = []
        while True:
            try:
                message = self.control.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return exits
            except ConnectionError:
                return exits or None
            if not message:
                return exits or None
            if message[:1] == b"R":
                self.ready = True
                answer = json.loads(message[1:])
                self.packages, self.address_space = answer["packages"], answer["address_space"]
            else:
                _, identity, status, user, system, _ = EXITED.unpack(message)
                exits.append(Exit(identity, status, user + system))

    def end(self, grace_s: float) -> str:
        """End the zygote and everything that it started. Returns what it has written.

        Its process is waited for, so nothing is left running.
        """
        self.request_end()
        self.close_descriptors()
        self.spares.clear()
        return _end(self.process, grace_s)

    def request_end(self) -> None:
        """End the socket, which ends the zygote. Closing is not enough while a fork of this process has a copy."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)

    def close_descriptors(self) -> None:
        """Close this process's ends of the control socket, of the process descriptor and of the children's pipes."""
        self.control.close()
        death, self.death = self.death, -1
        if death >= 0:
            os.close(death)
        for child in (*self.spares, *([self.running] if self.running else [])):
            child.close()

    def leave_to_parent(self) -> None:
        """Close the copies of all descriptors that a fork of the supervisor has. The zygote notices nothing."""
        self.close_descriptors()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _end(process: subprocess.Popen[bytes], grace_s: float) -> str:
    """Wait for a process that is about to end, kill it after a while, and return what it has written."""
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    complaint = process.stdout.read(4096) or b""
    process.stdout.close()
    return complaint.decode("utf-8", "replace").strip()


def describe_death(status: int) -> str | None:
    """A line about the signal that ended a child; None if none did."""
    if not os.WIFSIGNALED(status):
        return None
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    return f"killed by signal {number} ({name})"
