"""Pairs of programs, of which one tries to leave something for the other, that run as this user on one engine.

`CHANNELS` maps a name to a writer, a reader, and whether they run side by side (otherwise one after the other).
What a reader prints must not depend on whether there was a writer. A process of its own, so that the same pairs
run as root and as an ordinary user: `python sandbox_channels.py ENGINE [NAME...]` prints, for each name, the
reader's lines without and with a writer.
"""

# ruff: noqa: E501 - programs are quoted as they run
from __future__ import annotations

import json
import sys

from ctpo.sandbox import Sandbox

_LOCKS = """
import fcntl, os, struct, time
def tries(fd, kind):
    for number in range(8):
        for command in (37, fcntl.F_SETLK):
            yield number, command, struct.pack("hhqqi4x", kind, 0, 1000 + number, 1, 0)
def lock(fd, kind):
    got = []
    for number, command, how in tries(fd, kind):
        try: fcntl.fcntl(fd, command, how)
        except OSError as error: got.append(error.errno)
        else: got.append(0)
    try: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB if kind == fcntl.F_RDLCK else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error: got.append(error.errno)
    else: got.append(0)
    return got
"""
_FUTEX = """
import ctypes, os, platform, threading, time
libc = ctypes.CDLL(None, use_errno=True)
FUTEX = 202 if platform.machine() == "x86_64" else 98
fd = os.open(os.__file__, os.O_RDONLY)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
class Time(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("n", ctypes.c_long)]
bases = [libc.mmap(None, 4096, 1, sharing, fd, 0) for sharing in (1, 2)]
"""

CHANNELS: dict[str, tuple[str, str, bool]] = {
    "flags_of_stdin": (
        "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)",
        "import fcntl; print(fcntl.fcntl(0, fcntl.F_GETFL))",
        False,
    ),
    "locks_left_on_stdin": (
        f"{_LOCKS}\nlock(0, fcntl.F_RDLCK)",
        f"{_LOCKS}\nprint(lock(os.open('/dev/null', os.O_RDWR), fcntl.F_WRLCK))",
        False,
    ),
    "locks_on_a_device": (
        f"{_LOCKS}\nlock(os.open('/dev/null', os.O_RDWR), fcntl.F_WRLCK); time.sleep(0.3)",
        f"{_LOCKS}\ntime.sleep(0.15); print(lock(os.open('/dev/null', os.O_RDWR), fcntl.F_WRLCK))",
        True,
    ),
    "futexes_on_a_library": (
        # The kernel also wakes a futex for a thread that ends: where its `clear_child_tid` points.
        f"""{_FUTEX}
time.sleep(0.15)
for base in bases:
    for operation in (1, 10, 1 | 256):
        for number in range(4): libc.syscall(FUTEX, ctypes.c_void_p(base + 4 * number), operation, 9, None, None, ctypes.c_uint32(0xFFFFFFFF))
    for number in range(4):
        thread = threading.Thread(target=lambda: libc.syscall(218 if FUTEX == 202 else 96, ctypes.c_void_p(base + 4 * number)))
        thread.start(); thread.join()
""",
        f"""{_FUTEX}
woken = []
def wait(place, operation):
    value = ctypes.c_uint32.from_address(place).value
    if libc.syscall(FUTEX, ctypes.c_void_p(place), operation, ctypes.c_uint32(value), ctypes.byref(Time(0, 400_000_000)) if operation == 0 else None, None, ctypes.c_uint32(0xFFFFFFFF)) == 0: woken.append(place)
threads = [threading.Thread(target=wait, args=(base + 4 * number, 0)) for base in bases for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(woken))
""",
        True,
    ),
    "queued_signals": (
        "import os, signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [40])\n"
        "for _ in range(2000): os.kill(os.getpid(), 40)\ntime.sleep(0.3)",
        "import ctypes, os, signal, time\ntime.sleep(0.15)\nsignal.pthread_sigmask(signal.SIG_BLOCK, [40])\n"
        "for _ in range(2000): os.kill(os.getpid(), 40)\nqueued = 0\n"
        "while signal.sigtimedwait([40], 0): queued += 1\nprint(queued)",
        True,
    ),
    "number_of_threads": (
        "import os, threading, time\nthreading.stack_size(32768)\nmade = 0\ntry:\n"
        "  for made in range(200): threading.Thread(target=time.sleep, args=(1,), daemon=True).start()\n"
        "except RuntimeError: pass\ntime.sleep(0.8)",
        "import os, threading, time\ntime.sleep(0.15)\nthreading.stack_size(32768)\nmade = 0\ntry:\n"
        "  while made < 2000: threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); made += 1\n"
        "except RuntimeError: pass\nprint(made // 50, flush=True); os._exit(0)",
        True,
    ),
}


def _reports(engine: str, names: list[str]) -> dict[str, tuple[str, str]]:
    reports = {}
    with Sandbox(timeout_s=5, memory_mb=512, workers=2, engine=engine) as sandbox:
        for name in names:
            writer, reader, together = CHANNELS[name]
            if together:
                alone = sandbox.run([reader])[0]
                beside, written = sandbox.run([reader, writer])
            else:
                alone = sandbox.run([reader])[0]
                written = sandbox.run([writer])[0]
                beside = sandbox.run([reader])[0]
            assert alone.ok, (name, alone)
            assert beside.ok, (name, beside)
            assert written.status in ("ok", "error"), (name, written)
            reports[name] = (alone.stdout, beside.stdout)
    return reports


if __name__ == "__main__":
    json.dump(_reports(sys.argv[1], sys.argv[2:] or list(CHANNELS)), sys.stdout)
