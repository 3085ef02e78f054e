"""How many programs may run at the same time: one per core, if there are enough memory and file descriptors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ctpo.sandbox.result import SandboxUnavailable
from ctpo.sandbox.worker import DESCRIPTORS

_MEBIBYTE = 1 << 20
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # without a limit, cgroup v1 shows a number near 2^63
_ZYGOTES = 3  # each worker has one of each kind
_OWN_DESCRIPTORS = 16  # the pool's own, and those that are open for a moment while a process starts


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def available_memory_mb() -> int | None:
    """How many MiB programs could use now: the kernel's estimate, or what the container has left if that is less."""
    rooms = [room for room in (_machine_room(), _cgroup_room()) if room is not None]
    return min(rooms) // _MEBIBYTE if rooms else None


def check_memory_budget(workers: int | None, memory_mb: int) -> int:
    """The number of workers, at least 1, such that workers × memory fits into the machine.

    Args:
        workers: how many are wanted; None for as many as there are cores and memory for.
        memory_mb: how many MiB each program may use.

    Raises:
        ValueError: if the wanted number does not fit, or if not even one worker does.
    """
    room = available_memory_mb()
    wanted = usable_cores() if workers is None else workers
    if room is None or wanted * memory_mb <= room:
        return wanted
    fitting = room // memory_mb
    if workers is not None or fitting < 1:
        raise ValueError(
            f"workers={wanted} × memory_mb={memory_mb} is more than the {room} MiB this machine has left; "
            f"lower memory_mb or use at most workers={fitting}"
        )
    return fitting


def check_descriptors(wanted: int | None, workers: int) -> int:
    """The number of workers, at most `workers`, for which this process may open enough files.

    Args:
        wanted: how many the caller asked for; None if fewer will do.
        workers: how many there would be.

    Raises:
        SandboxUnavailable: if the limit of open files is too low for the wanted number, or for one worker.
    """
    if sys.platform != "linux":
        return workers
    import resource  # Windows has none, and the package can be imported there

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return workers
    used = len(os.listdir("/proc/self/fd")) - 1
    each = _ZYGOTES * DESCRIPTORS
    fitting = min(workers, (limit - used - _OWN_DESCRIPTORS) // each)
    if fitting < (1 if wanted is None else workers):
        least = used + _OWN_DESCRIPTORS + each * (wanted or 1)
        raise SandboxUnavailable(
            f"the sandbox needs {least - used} file descriptors for workers={wanted or 1}, and this process has "
            f"{max(0, limit - used)} of its {limit} left; raise the limit with `ulimit -n {least}` or more"
        )
    return fitting


def _machine_room() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cgroup_room() -> int | None:
    """The memory limit minus the memory use of the cgroup that this process sees as its root (v2, then v1)."""
    for limit, use in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = int((_CGROUP / limit).read_text())
            used = int((_CGROUP / use).read_text())
        except (OSError, ValueError):  # there is no such controller, or its limit is "max"
            continue
        if most < _UNLIMITED:
            return max(0, most - used)
    return None
