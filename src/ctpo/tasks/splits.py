"""Which split a problem belongs to, decided by the problem itself."""

from __future__ import annotations

import hashlib

HELD_OUT_SHARE = 1 / 8


def digest(prompt: str) -> str:
    """Return a stable hexadecimal fingerprint of a prompt (the same on every machine, unlike `hash`)."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def held_out(prompt: str, share: float = HELD_OUT_SHARE) -> bool:
    """Tell whether a prompt belongs to the test split.

    The decision depends on the prompt alone, so no seed, count or version of a generator can put one prompt
    into both splits.
    """
    return int(digest(prompt)[:8], 16) < share * 2**32
