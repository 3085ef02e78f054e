"""The zygote is an interpreter that is warmed up once and forks one confined child for every program.

It is trusted and single-threaded, and it never sees a program or its output. The supervisor sends it three pipe ends
for each child (the program, stdout, stderr); the child takes them and the zygote closes them. A child is confined
before its program reaches it, so it can wait as a spare.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NoReturn

from . import kernel
from .confinement import confinement_steps, isolate
from .program import run
from .warm_up import warm_up
from .wire import CONFIGURATION_BYTES, EXIT_SETUP, EXITED, REQUEST, Configuration


class Zygote:
    """The loop that forks, kills and reaps children as the supervisor requests."""

    def __init__(self, control: socket.socket, config: Configuration) -> None:
        self.control = control
        self.config = config
        self.pid = os.getpid()
        self.steps = confinement_steps(config)
        self.poller = select.poll()
        self.poller.register(control.fileno(), select.POLLIN)
        self.pids: dict[int, int] = {}  # the process of each child's id
        self.watched: dict[int, tuple[int, int]] = {}  # the id and process of each pidfd
        self.self_fd = os.pidfd_open(self.pid) if config.namespaces else -1

    def serve(self) -> NoReturn:
        while True:
            for fd, _ in self.poller.poll():
                if fd in self.watched:
                    self.reap(fd)
                elif fd == self.control.fileno():
                    self.obey()

    def obey(self) -> None:
        room = socket.CMSG_SPACE(3 * 4)
        message, ancillary, _, _ = self.control.recvmsg(64, room)
        if not message:
            self.end()
        kind, identity = REQUEST.unpack(message)
        if kind == b"F":
            descriptors = array.array("i")
            descriptors.frombytes(ancillary[0][2])
            self.fork(identity, list(descriptors))
        elif identity in self.pids:
            os.kill(self.pids[identity], signal.SIGKILL)

    def fork(self, identity: int, descriptors: list[int]) -> None:
        if self.config.namespaces:
            kernel.call("unshare", kernel.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            _child(self, descriptors)
        if self.config.namespaces:
            # The next unshare is refused unless new children belong to this process's own namespace again.
            kernel.call("setns", self.self_fd, kernel.CLONE_NEWPID)
        for fd in descriptors:
            os.close(fd)
        watch = os.pidfd_open(pid)
        self.pids[identity] = pid
        self.watched[watch] = (identity, pid)
        self.poller.register(watch, select.POLLIN)

    def reap(self, watch: int) -> None:
        identity, pid = self.watched.pop(watch)
        self.poller.unregister(watch)
        os.close(watch)
        _, status, usage = os.wait4(pid, 0)
        del self.pids[identity]
        self.control.send(
            EXITED.pack(b"X", identity, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
        )

    def end(self) -> NoReturn:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _child(zygote: Zygote, descriptors: list[int]) -> NoReturn:
    """Take the pipe ends (the program on 3, stdout on 1, stderr on 2), confine this child, and run.

    The empty stdin is opened here, so that its flags, its position and its locks are this child's own.
    """
    config = zygote.config
    try:
        code, out, err = descriptors
        os.close(0)
        os.open("/dev/null", os.O_RDONLY)  # takes the lowest free descriptor, which is 0
        os.dup2(out, 1)
        os.dup2(err, 2)
        if code != 3:
            os.dup2(code, 3)
        os.closerange(4, 1 << 16)
        for offset in config.pid_offsets:
            struct.pack_into("<I", config.filter, offset, os.getpid())
        for function, arguments in zygote.steps:
            if function(*arguments) != 0:
                raise kernel.failure(function.__name__)
        if not config.namespaces and os.getppid() != zygote.pid:
            os._exit(EXIT_SETUP)  # the zygote died before the parent-death signal was set
    except BaseException as error:
        os.write(2, f"sandbox set-up failed: {error}\n".encode())
        os._exit(EXIT_SETUP)
    run(config)


@contextlib.contextmanager
def _room_to_write(config: Configuration) -> Iterator[None]:
    """A scratch folder while the modules that the caller named are imported: some of them write a cache."""
    if not (config.modules and config.namespaces and config.scratch):
        yield
        return
    options = f"size={config.scratch_bytes},mode=700".encode()
    kernel.call("mount", b"tmpfs", config.scratch.encode(), b"tmpfs", 0, options)
    os.chdir(config.scratch)
    try:
        yield
    finally:
        os.chdir("/")
        kernel.call("umount2", config.scratch.encode(), kernel.MNT_DETACH)


def main(descriptor: int) -> NoReturn:
    """Read the configuration from the socket, warm up, confine this process, and serve."""
    control = socket.socket(fileno=descriptor)
    config = Configuration(control.recv(CONFIGURATION_BYTES))
    sys.path += config.paths
    sys.argv = [""]
    sys.dont_write_bytecode = True
    # What the warm-up prints must not appear in the first program's output.
    outside, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    with _room_to_write(config):
        packages = warm_up(config.preload, config.modules)
    sys.stdout = outside
    os.environ.clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    isolate(config)
    # Changing the user clears the parent-death signal, so it is set last. Until then, the end of the socket ends us.
    kernel.call("prctl", kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    gc.collect()
    gc.freeze()
    zygote = Zygote(control, config)
    control.send(b"R" + json.dumps({"packages": packages, "address_space": config.address_space}).encode())
    zygote.serve()
