"""Memory that tensors give back stays with the process, for the next tensor.

glibc returns a large block to the system as soon as it is freed, and the system clears every page of the next one:
a pass over memory more for most operations on a CPU, some tenth of a step (docs/step.md).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_NEVER = 2**31 - 1
_OLD_LIMIT = 2**25
"""The largest M_MMAP_THRESHOLD that older versions of glibc take."""
_STEP = 2**26


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed instead of returning it to the system, from now on and for the whole process.

    Returns:
        Whether this system's malloc could be told so (glibc's can).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, _OLD_LIMIT)
    return bool(taken and mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_TOP_PAD, _STEP))
