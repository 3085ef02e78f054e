"""The zygote is an interpreter that is warmed up once and forks one confined child for every program.

It is trusted and single-threaded, and it never sees a program or its output. The supervisor sends it three pipe ends
for each child (the program, stdout, stderr); the child takes them and the zygote closes them. A child is confined
before its program reaches it, so it can wait as a spare.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

from . import kernel
from .confinement import confinement_steps, isolate
from .program import prepare, rehearse, run
from .wire import EXIT_SETUP, EXITED, REQUEST, Configuration

Step = tuple[Any, tuple[Any, ...]]
_LAST_DESCRIPTOR = 0xFFFFFFFF
_THREE = struct.Struct("3i")
_SIGNAL_SET_BYTES = 128
_SIG_BLOCK, _SIG_SETMASK = 0, 2
_NO_STATUS = EXIT_SETUP << 8
"""The wait status that is reported of a child that could not be forked."""


class Zygote:
    """The loop that forks, kills and reaps children as the supervisor requests."""

    def __init__(self, control: socket.socket, config: Configuration) -> None:
        self.control = control
        self.config = config
        self.pid = os.getpid()
        self.steps = confinement_steps(config)
        self.pids: dict[int, int] = {}  # the process of each child's id
        self.identities: dict[int, int] = {}  # and the other way round
        self.self_fd = os.pidfd_open(self.pid) if config.namespaces else -1
        # The end of a child is read like a message. So it wakes the loop, whenever it comes.
        ended = (1 << (signal.SIGCHLD - 1)).to_bytes(_SIGNAL_SET_BYTES, sys.byteorder)
        kernel.call("sigprocmask", _SIG_BLOCK, ended, None)
        self.ends = kernel.libc.signalfd(-1, ended, os.O_CLOEXEC)
        self.steps.insert(0, (kernel.libc.sigprocmask, (_SIG_SETMASK, bytes(_SIGNAL_SET_BYTES), None)))
        self.received = bytes(_THREE.size)
        self.taking = _take(*_THREE.unpack(self.received))
        self.room = socket.CMSG_SPACE(_THREE.size)
        self.poller = select.poll()
        self.poller.register(control.fileno(), select.POLLIN)
        self.poller.register(self.ends, select.POLLIN)

        self.fill_in_pid(1)  # every child is the first process of its namespace, if there are any

    def fill_in_pid(self, pid: int) -> None:
        """Write a process id where the system-call filter compares with the program's own."""
        word = pid.to_bytes(4, "little")
        for offset in self.config.pid_offsets:
            self.config.filter[offset : offset + 4] = word

    def serve(self) -> NoReturn:
        while True:
            for fd, _ in self.poller.poll():
                if fd == self.ends:
                    os.read(fd, 128)
                    self.reap()
                else:
                    self.obey()

    def obey(self) -> None:
        message, ancillary, _, _ = self.control.recvmsg(64, self.room)
        if not message:
            self.end()
        kind, identity = REQUEST.unpack(message)
        if kind == b"F":
            self.fork(identity, ancillary[0][2])
        elif identity in self.pids:
            os.kill(self.pids[identity], signal.SIGKILL)

    def fork(self, identity: int, received: bytes) -> None:
        descriptors = _THREE.unpack(received)
        if received != self.received:  # they are nearly always the lowest free numbers, and so the same
            self.received, self.taking = received, _take(*descriptors)
        if self.config.namespaces:
            kernel.call("unshare", kernel.CLONE_NEWPID)
        # Not os.fork: its hooks renew the state of every module that knows threads or random numbers, which cost more
        # than the fork. There is one thread, so all that a child needs renewed is done in `_child` and `run`.
        pid = kernel.libc.fork()
        if pid == 0:
            _child(self)
        if self.config.namespaces:
            # The next unshare is refused unless new children belong to this process's own namespace again.
            kernel.call("setns", self.self_fd, kernel.CLONE_NEWPID)
        for fd in descriptors:
            os.close(fd)
        if pid < 0:  # the system has no process or memory left; the program is tried again
            self.control.send(EXITED.pack(b"X", identity, _NO_STATUS, 0.0, 0.0, 0))
            return
        self.pids[identity] = pid
        self.identities[pid] = identity

    def reap(self) -> None:
        """Report the children that have ended. One signal may stand for several."""
        while self.pids:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            identity = self.identities.pop(pid)
            del self.pids[identity]
            self.control.send(
                EXITED.pack(b"X", identity, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
            )

    def end(self) -> NoReturn:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _take(code: int, out: int, err: int) -> list[Step]:
    """The calls with which a child takes its pipe ends: the program on 3, stdout on 1, stderr on 2, and nothing else.

    The empty stdin is opened in the child, so that its flags, its position and its locks are this child's own.
    """
    libc = kernel.libc
    return [
        (libc.close, (0,)),
        (libc.open, (b"/dev/null", os.O_RDONLY)),  # takes the lowest free descriptor, which is 0
        (libc.dup2, (out, 1)),
        (libc.dup2, (err, 2)),
        (libc.dup2, (code, 3)),
        (libc.syscall, (kernel.CLOSE_RANGE, 4, _LAST_DESCRIPTOR, 0)),
    ]


def _child(zygote: Zygote) -> NoReturn:
    """Take the pipe ends, confine this child, and run the program."""
    config = zygote.config
    try:
        if not config.namespaces:
            zygote.fill_in_pid(os.getpid())
        for steps in (zygote.taking, zygote.steps):
            for function, arguments in steps:
                if function(*arguments) < 0:
                    raise kernel.failure(function.__name__)
        if not config.namespaces and os.getppid() != zygote.pid:
            os._exit(EXIT_SETUP)  # the zygote died before the parent-death signal was set
    except BaseException as error:
        os.write(2, f"sandbox set-up failed: {error}\n".encode())
        os._exit(EXIT_SETUP)
    run(config)


def serve(control: socket.socket, config: Configuration, packages: list[str]) -> NoReturn:
    """Confine this process and fork children. The interpreter is warm and knows these packages."""
    isolate(config)
    # Changing the user has cleared the parent-death signal, which otherwise was set first of all.
    kernel.call("prctl", kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    zygote = Zygote(control, config)
    rehearse()
    gc.collect()
    kernel.libc.malloc_trim(0)  # children then find large free blocks, and do not search the small ones
    gc.freeze()
    prepare()
    control.send(b"R" + json.dumps({"packages": packages, "address_space": config.address_space}).encode())
    zygote.serve()
