"""Memory that tensors free stays with the process, for the next tensor.

glibc returns a large block to the system as soon as it is freed, and the system clears every page of the next block.
That is one more pass over memory for most operations on a CPU, about a tenth of a training step
(docs/explanation/step.md).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
_NEVER = 2**31 - 1
_OLD_LIMIT = 2**25
"""The largest M_MMAP_THRESHOLD that older versions of glibc accept."""
_STEP = 2**26
"""Bytes that malloc asks of the system at once."""


def keep_freed_memory() -> bool:
    """Set malloc to keep freed memory instead of returning it to the system, for the rest of the process.

    Returns:
        Whether this system's malloc has such a setting, as glibc's has.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, _OLD_LIMIT)
    return bool(taken and mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_TOP_PAD, _STEP))
