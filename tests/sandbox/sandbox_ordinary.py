"""Start a command as an ordinary user (nobody), from root: `sandbox_ordinary.py PATH... -- COMMAND...`.

The interpreter may lie where only root may look (/root, say), so the given paths are first made visible in a
mount namespace of this command's own: every folder above them that others may not enter is replaced by an
empty one that holds nothing but these paths.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

NOBODY = 65534
_NEWNS, _BIND, _REC, _PRIVATE, _MOVE = 0x20000, 4096, 16384, 1 << 18, 8192
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    if _libc.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}")


def _closed_ancestor(path: Path) -> Path | None:
    """The outermost folder above `path` that others may not enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def _reveal(paths: list[Path]) -> None:
    if _libc.unshare(_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", "/", None, _REC | _PRIVATE)
    hidden: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(paths):
        if (closed := _closed_ancestor(path)) is not None:
            hidden.setdefault(closed, []).append(path)
    for closed, inside in hidden.items():
        staging = Path(tempfile.mkdtemp(prefix="ctpo-reveal-"))
        _mount("tmpfs", str(staging), "tmpfs", 0, "mode=755")
        for path in inside:
            kept = staging / path.relative_to(closed)
            if path.is_dir():
                kept.mkdir(parents=True, exist_ok=True)
            else:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.touch()
            _mount(str(path), str(kept), None, _BIND | _REC)
        _mount(str(staging), str(closed), None, _MOVE)
        staging.rmdir()


if __name__ == "__main__":
    split = sys.argv.index("--")
    _reveal([Path(path) for path in sys.argv[1:split]])
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    command = sys.argv[split + 1 :]
    os.execv(command[0], command)
