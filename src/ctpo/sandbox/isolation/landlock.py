"""Landlock rules for a zygote if namespaces are forbidden: it may read the interpreter's files and nothing else.

Landlock does not restrict chmod, utime, extended attributes and `stat`. The system-call filter covers the first three
(`seccomp.py`); `stat` stays possible (docs/explanation/sandbox.md).

Source: the kernel's `Documentation/userspace-api/landlock.rst`.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_CREATE_RULESET = 444  # the same on every architecture
_GET_VERSION = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
LEAST_ABI = 3
"""The first version that can forbid emptying a file (Linux 6.2). Before, `truncate` emptied any of the user's files."""
# The file rights that each ABI version added: 15 up to the third (truncate was the last), then ioctl on devices.
_FILE_RIGHTS = ((3, 0x7FFF), (5, 0x8000))
_TCP_ABI, _TCP_RIGHTS = 4, 0x3  # bind, connect
_SCOPE_ABI, _SCOPES = 6, 0x3  # abstract Unix sockets, signals


def abi() -> int:
    """The version of the kernel's Landlock ABI; 0 if the kernel has none."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _GET_VERSION)))


def settings(version: int, readable: tuple[Path, ...], hidden: tuple[Path, ...] = ()) -> dict[str, object]:
    """The settings with which the zygote restricts itself.

    Args:
        version: the kernel's ABI version, at least `LEAST_ABI`.
        readable: the files and folders that may be read.
        hidden: what must not be read all the same. The folders around it can still be listed.

    Returns:
        The handled rights as bit masks, the size of the kernel's structure, and rules [path, rights].
    """
    assert version >= LEAST_ABI
    files = sum(bits for since, bits in _FILE_RIGHTS if version >= since)
    rules = [rule for path in readable for rule in _rules(path, hidden)]
    rules += [
        ["/dev/null", _READ_FILE | _WRITE_FILE],
        ["/dev/zero", _READ_FILE],
        ["/dev/urandom", _READ_FILE],
    ]
    return {
        "files": files,
        "network": _TCP_RIGHTS if version >= _TCP_ABI else 0,
        "scopes": _SCOPES if version >= _SCOPE_ABI else 0,
        "size": 24 if version >= _SCOPE_ABI else 16 if version >= _TCP_ABI else 8,
        "rules": rules,
    }


def _rules(path: Path, hidden: tuple[Path, ...]) -> list[list[object]]:
    """Rules that make everything below the path readable, except what is hidden.

    A rule can only add rights. So a folder with something hidden below may be listed, and each other entry gets a rule.
    A link gets none: its rule would be one for the place it leads to.
    """
    if path in hidden:
        return []
    if not any(path in each.parents for each in hidden):
        return [[str(path), _rights(path)]]
    entries = sorted(entry for entry in path.iterdir() if not entry.is_symlink())
    return [[str(path), _READ_DIR], *(rule for entry in entries for rule in _rules(entry, hidden))]


def _rights(path: Path) -> int:
    return _READ_FILE | _READ_DIR if path.is_dir() else _READ_FILE
