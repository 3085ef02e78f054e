"""Whether the isolation holds, decided by what a program can do and not by which binaries are installed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ctpo.sandbox.result import SandboxResult


@dataclass(frozen=True)
class Check:
    """One thing that a program tried: whether the sandbox prevented it, and what the program saw."""

    name: str
    held: bool
    detail: str


# Runs first, and tries to leave something for the program below.
_PROGRAM_BEFORE = """
import fcntl, os
fcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
"""
_PROGRAM = r"""
import ctypes, fcntl, json, os, platform, resource, struct, threading, time
GIVEN = json.loads({given!r})
libc = ctypes.CDLL(None, use_errno=True)

def network():
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
def fork():
    if os.fork() == 0: os._exit(0)
def run_command(): os.execv("/bin/true", ["true"])
def read_file(): open(GIVEN["canary"]).read()
def read_environment():
    if not os.environ: open(f"/proc/{{GIVEN['pid']}}/environ").read()
def write_file(): open(GIVEN["folder"] + "/written", "w").write("x")
def write_library(): open(os.path.dirname(os.__file__) + "/written.py", "w").write("x")
def empty_file():
    # Every way is tried. The check of the canary afterwards shows whether one has worked without saying so.
    path, flags = GIVEN["canary"], (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
    ways = [lambda: os.truncate(path, 0), lambda: open(path, "w")]
    ways += [lambda flag=flag: os.open(path, flag | os.O_TRUNC) for flag in flags]
    for way in ways:
        try: way()
        except OSError as last: error = last
        else: return
    raise error
def change_mode(): os.chmod(GIVEN["canary"], 0o777)
def signal_process(): os.kill(GIVEN["pid"], 0)
def read_clock(): time.clock_gettime(~GIVEN["pid"] << 3 | 2)
def lock_file():
    for path in ("/dev/null", os.__file__):
        fcntl.fcntl(os.open(path, os.O_RDONLY), 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 1, 0))
def change_stdin():
    if not fcntl.fcntl(0, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND): raise OSError("stdin is a program's own")
def wait_on_library():
    libc.mmap.restype = ctypes.c_void_p
    place = libc.mmap(None, 4096, 1, 2, os.open(os.__file__, os.O_RDONLY), 0)
    word, soon = ctypes.c_uint32.from_address(place), struct.pack("2l", 0, 1000000)
    number = 202 if platform.machine() == "x86_64" else 98
    libc.syscall(number, ctypes.c_void_p(place), 0, word, soon, None, 0)
    if ctypes.get_errno() != 110: raise OSError(ctypes.get_errno(), "futex")
def open_pipe():
    own = os.getpid()
    others = [os.getppid(), *range(max(1, own - 9), own), *range(own + 1, own + 9)]
    for path in [f"/proc/{{pid}}/fd/{{fd}}" for pid in others for fd in range(4)]:
        try: os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as last: error = last
        else: return
    raise error
def shared_memory():
    if libc.shmget(0x5EC2E7, 4096, 0o1600) == -1: raise OSError(ctypes.get_errno(), "shmget")
def trace():
    if libc.ptrace(0, 0, 0, 0) == -1: raise OSError(ctypes.get_errno(), "ptrace")
def new_namespace():
    if libc.unshare(0x10000000) == -1: raise OSError(ctypes.get_errno(), "unshare")
def raise_limit(): resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
def memory(): bytearray(GIVEN["memory_bytes"] + (16 << 20))

outcome = {{}}
for attempt in (network, fork, run_command, read_file, read_environment, write_file, write_library,
                empty_file, change_mode, signal_process, read_clock, lock_file, change_stdin, wait_on_library,
                open_pipe, shared_memory, trace, new_namespace, raise_limit, memory):
    try:
        attempt()
        outcome[attempt.__name__] = None
    except BaseException as error:
        outcome[attempt.__name__] = f"{{type(error).__name__}}: {{error}}"[:120]
started = []
thread = threading.Thread(target=started.append, args=(1,)); thread.start(); thread.join()
outcome["threads"] = started == [1]
print(json.dumps(outcome))
"""


def probe(run: Callable[[str], SandboxResult], memory_bytes: int) -> list[Check]:
    """One check for each thing that no program may do, in a fixed order. One program tries nearly all of them.

    `held` is False if the attempt succeeded.

    Args:
        run: runs a program in the sandbox under test.
        memory_bytes: how much memory the program may use.
    """
    with tempfile.TemporaryDirectory(prefix="ctpo-canary-") as folder:
        # Every user of this machine may read the file and write to the folder, so only isolation can prevent it.
        os.chmod(folder, 0o777)
        canary = Path(folder) / "canary"
        canary.write_text("canary")
        canary.chmod(0o666)
        given = {"folder": folder, "canary": str(canary), "pid": os.getpid(), "memory_bytes": memory_bytes}
        run(_PROGRAM_BEFORE)
        result = run(_PROGRAM.format(given=json.dumps(given)))
        untouched = canary.stat().st_mode & 0o777 == 0o666 and os.listdir(folder) == ["canary"]
        untouched = untouched and canary.read_text() == "canary"
    if result.status != "ok":
        return [Check("probe", False, f"{result.status}: {(result.stderr.strip() or 'no output')[-300:]}")]
    outcome: dict[str, str | bool | None] = json.loads(result.stdout)
    threads = outcome.pop("threads")
    checks = [Check(name, error is not None, str(error or "succeeded")) for name, error in outcome.items()]
    checks.append(
        Check("leave_traces", untouched, "none found" if untouched else "the canary's folder changed")
    )
    return [*checks, Check("threads", bool(threads), "work" if threads else "do not work")]
