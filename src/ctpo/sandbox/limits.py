"""How many programs may run at a time: one a core, as far as memory goes."""

from __future__ import annotations

import os
from pathlib import Path

_MEBIBYTE = 1 << 20
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63


def usable_cores() -> int:
    """Cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def available_memory_mb() -> int | None:
    """MiB that programs could use now: the kernel's estimate, or what the container has left if less."""
    rooms = [room for room in (_machine_room(), _cgroup_room()) if room is not None]
    return min(rooms) // _MEBIBYTE if rooms else None


def check_memory_budget(workers: int | None, memory_mb: int) -> int:
    """Settle the number of workers so that workers × memory fits the machine.

    Args:
        workers: how many were asked for, or None to choose.
        memory_mb: MiB each program may use.
    Returns:
        The number of workers, at least 1.
    Raises:
        ValueError: if what was asked for, or a single worker, does not fit.
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


def _machine_room() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cgroup_room() -> int | None:
    """Limit minus use of the cgroup this process sees as its root (v2, then v1)."""
    for limit, use in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = int((_CGROUP / limit).read_text())
            used = int((_CGROUP / use).read_text())
        except (OSError, ValueError):  # no such controller, or "max"
            continue
        if most < _UNLIMITED:
            return max(0, most - used)
    return None
