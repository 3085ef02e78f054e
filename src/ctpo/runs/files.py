"""Reading files that somebody else may have written: never a device, never more than a limit, never without an end.

A file in a directory from someone else can be a FIFO (reading it waits forever), a device, a link to a private file, or
larger than the memory. Every small file is opened here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 128 * 2**20
"""The largest file that is read whole, unless a reader gives another limit."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        most: the largest number of bytes.

    Raises:
        OSError: if it is missing, is no regular file, or is larger. `strerror` says which.
    """
    # Opening a FIFO would wait for a writer. O_NONBLOCK changes nothing for regular files.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        # Not `most`: so many bytes would be reserved first.
        content = file.read(min(facts.st_size, most) + 1) if facts.st_size <= most else b""
    if facts.st_size > most or len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the content of a regular file as text in UTF-8, without a byte order mark at its start.

    Raises:
        OSError: as `read_bytes` does.
        UnicodeDecodeError: if it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def leads_out(path: Path, root: Path) -> bool:
    """Return whether a path below `root` leads somewhere else, through a link at it or above it."""
    return not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), ""))


def foreign_entries(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield everything below a directory that is no plain file or folder of its own, each with a word for what it is.

    These are links that lead out of the directory, FIFOs, sockets and devices. Links are not followed.
    """
    for folder, folders, files in os.walk(root, followlinks=False):
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                if leads_out(path, root):
                    yield path, f"a link to {os.path.realpath(path)}"
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield path, "a device, a FIFO or a socket"


def special_file(folder: Path) -> Path | None:
    """Return the first FIFO, socket or device in a folder, or behind a link in it; None if there is none."""
    for path in sorted(folder.iterdir()):
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return path
    return None
