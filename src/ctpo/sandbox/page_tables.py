"""How much memory a program makes the kernel hold: its address space and the page tables for it.

A limit of the address space does not count page tables. A program that maps single pages far apart from each other
makes the kernel keep two more pages for each of them, so it would take three times its limit. The kernel has no limit
for page tables outside of cgroups. So the supervisor looks at a running program now and then.

Source: the kernel's `Documentation/filesystems/proc.rst`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

LOOK_EVERY_S = 0.04
_KIBIBYTE = 1 << 10
_LONGEST = 1 << 14  # a process's status is about a thousand bytes


def allowance(memory_bytes: int) -> int:
    """How many bytes of page tables a program may have beside its memory. In one piece, it needs an eighth."""
    return (memory_bytes >> 6) + (4 << 20)


def most_held(process: int) -> int:
    """The bytes of address space and page tables together, of that descendant of a process that has most.

    It is 0 if there is none. Only processes without children of their own count: the programs, and not their zygote.
    """
    return max(map(_held, _leaves(process)), default=0)


def _leaves(process: int) -> list[int]:
    children = _children(process)
    if len(children) == 1:  # bubblewrap and its zygote, or a zygote with one child
        return _leaves(children[0])
    return children or [process]


def _children(process: int) -> list[int]:
    try:
        return [int(pid) for pid in _read(f"/proc/{process}/task/{process}/children").split()]
    except FileNotFoundError:  # this kernel was built without it, or the process is gone
        return [pid for pid, parent in _parents() if parent == process]
    except OSError:
        return []


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # the process has just ended
                yield int(name), int(_read(f"/proc/{name}/stat").rpartition(b")")[2].split()[1])


def _held(process: int) -> int:
    """The bytes of one process. If its first thread has ended, any other one knows."""
    with contextlib.suppress(OSError):
        if (held := _sizes(f"/proc/{process}/status")) == 0:
            for thread in os.listdir(f"/proc/{process}/task"):
                held = held or _sizes(f"/proc/{process}/task/{thread}/status")
        return held
    return 0


def _sizes(status: str) -> int:
    text = _read(status)
    total = 0
    for name in (b"\nVmSize:", b"\nVmPTE:"):
        rest = text.partition(name)[2]
        total += int(rest.split(None, 1)[0]) if rest else 0
    return total * _KIBIBYTE


def _read(path: str) -> bytes:
    # Plainly, because this happens often while a program runs.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _LONGEST)
    finally:
        os.close(fd)
