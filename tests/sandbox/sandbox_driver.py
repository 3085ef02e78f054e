"""Runs every hostile program on one engine, and reports its result and the host's state as JSON on stdout.

A process of its own, so that the same programs run as root and as an ordinary user, with a secret in the
environment: `python sandbox_driver.py ENGINE [NAME...]`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sandbox_hostile import HOSTILE, PRELUDE

from ctpo.sandbox import Sandbox
from ctpo.sandbox.pool import SPARES

MEMORY_MB = 128
SECRET_NAME = "CTPO_TEST_SECRET"


class Host:
    """What a program could reach if it broke out: files, listeners and shared memory."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ctpo-host-"))
        self.folder.chmod(0o777)
        self.canary = self.folder / "canary"
        self.canary.write_text(secrets.token_hex(8))
        self.canary.chmod(0o666)
        self.abstract = "ctpo-" + secrets.token_hex(8)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.bind("\0" + self.abstract)
        self.stream.listen()
        self.datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagram.bind(f"\0{self.abstract}-datagram")
        self.listeners = [self.tcp, self.udp, self.stream, self.datagram]
        for listener in self.listeners:
            listener.setblocking(False)

    def given(self) -> dict[str, Any]:
        return {
            "canary": str(self.canary),
            "folder": str(self.folder),
            "pid": os.getpid(),
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "abstract": self.abstract,
            "memory_bytes": MEMORY_MB << 20,
            "machine": platform.machine(),
        }

    def state(self) -> dict[str, Any]:
        """The state of everything that a program must not change."""
        watched = [self.folder, self.canary, Path(os.__file__), Path(os.__file__).parent, Path("/dev/null")]
        watched += [Path("/dev/zero"), Path("/tmp"), Path(sys.executable).resolve()]
        modes = {str(path): (path.stat().st_mode, path.stat().st_uid) for path in watched}
        times = {str(path): path.stat().st_mtime_ns for path in watched[:4]}
        ipc = {name: _ipc_keys(name) for name in ("shm", "sem", "msg")}
        shm = sorted(name for name in os.listdir("/dev/shm") if "left-behind" in name)
        return {
            "modes": modes,
            "times": times,
            "listing": sorted(os.listdir(self.folder)),
            "content": self.canary.read_text() if self.canary.exists() else None,
            "ipc": ipc,
            "shm": shm,
            "affinity": sorted(os.sched_getaffinity(0)),
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
        }

    def heard(self) -> list[str]:
        """What the listeners have received since the last call."""
        received = []
        for listener in (self.tcp, self.stream):
            with contextlib.suppress(BlockingIOError):
                listener.accept()
                received.append("connection")
        for listener in (self.udp, self.datagram):
            with contextlib.suppress(BlockingIOError):
                received.append(repr(listener.recv(64)))
        return received


def _ipc_keys(kind: str) -> list[str]:
    """The keys of SysV objects. They distinguish other processes' objects from those that a program would leave."""
    lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
    return sorted(line.split()[0] for line in lines if int(line.split()[0]) == 0x5EC2E7)


def sessions() -> dict[int, int]:
    """The session id of every process that is not a zombie, by process id."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(entry)] = int(fields[3])
    return found


def gone(started: Sequence[int], within_s: float = 3.0) -> bool:
    """Whether no process of these sessions is left. The kernel ends the children of a killed process a little later."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(session in started for session in sessions().values()):
            return True
        time.sleep(0.02)
    return False


def leftovers(sandbox: Sandbox) -> int:
    """Processes in the zygotes' sessions beyond the zygotes and their spares, once things have settled.

    A program can't leave the session of its zygote (setsid is refused), so an orphan would be found here.
    """
    assert sandbox._pool is not None
    each = SPARES + (2 if sandbox.engine.name == "bubblewrap" else 1)
    for _ in range(100):
        started = sandbox._pool.processes()
        here = [pid for pid, session in sessions().items() if session in started]
        extra = len(here) - each * len(started)
        if extra <= 0:
            return 0
        time.sleep(0.02)
    return extra


def _reports(engine: str, host: Host, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    secret = os.environ[SECRET_NAME]
    with Sandbox(timeout_s=10, memory_mb=MEMORY_MB, workers=1, engine=engine) as sandbox:
        sandbox.run(["import numpy", "import decimal"], timeout_s=60)  # all zygotes are there from the start
        for name in names:
            program, statuses = HOSTILE[name]
            before = host.state()
            started = time.monotonic()
            # What is to end by itself gets time for it on a busy machine.
            timeout_s = 0.4 if "timeout" in statuses else 10.0
            result = sandbox.run([f"GIVEN = {host.given()!r}\n{PRELUDE}\n{program}"], timeout_s=timeout_s)[0]
            took = time.monotonic() - started
            answer = sandbox.run(["print(42)"])[0]
            yield (
                name,
                {
                    "status": result.status,
                    "stdout": result.stdout[:2000],
                    "stderr": result.stderr[-1000:],
                    "took": took,
                    "secret": secret in result.stdout or host.canary.read_text() in result.stdout,
                    "answer": answer.stdout,
                    "leftovers": leftovers(sandbox),
                    "changed": {
                        key: (before[key], after)
                        for key, after in host.state().items()
                        if after != before[key]
                    },
                    "heard": host.heard(),
                    "uid": os.getuid(),
                },
            )


if __name__ == "__main__":
    host = Host()
    try:
        json.dump(dict(_reports(sys.argv[1], host, sys.argv[2:] or list(HOSTILE))), sys.stdout)
    finally:
        shutil.rmtree(host.folder)
