"""Calls of the kernel for which Python has no function, made through libc."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Any

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MNT_DETACH = 2
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 8, 24, 38
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
CAPABILITY_VERSION_3, CAP_DAC_READ_SEARCH = 0x20080522, 2
# The same numbers on every architecture.
CLOSE_RANGE = 436
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446

_READ_WRITE, _PRIVATE_ANONYMOUS = 3, 0x22

# PyDLL keeps the interpreter lock during a call. There is only one thread, so nobody else could use it.
libc = ctypes.PyDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def failure(name: str) -> OSError:
    """An OSError for the libc call that has just failed."""
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")


def call(name: str, *arguments: Any) -> None:
    """Call a libc function.

    Raises:
        OSError: with the function's name, if it fails.
    """
    if getattr(libc, name)(*arguments) != 0:
        raise failure(name)


def mapped_bytes() -> int:
    """How many bytes of address space this process maps, measured with RLIMIT_AS: the least at which a page fits."""
    page = resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, 1 << 40
    while high - low > 1 << 16:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
        address = libc.mmap(None, page, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        if address == ctypes.c_void_p(-1).value:
            low = middle
        else:
            libc.munmap(address, page)
            high = middle
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return high
