"""The compiled C pass: the library built with the package, or one compiled on first use and cached.

A library is loaded from the package, or from a folder that only this user can write to. Each user's cache is
`$CTPO_CACHE_DIR`, else `$XDG_CACHE_HOME/ctpo/native`, else `~/.cache/ctpo/native`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sysconfig
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from ctpo.objectives.cpu.compile_flags import arguments, compiler, cpu_flags, fingerprint

_HERE = Path(__file__).parent
_COMPILE_SECONDS = 300


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled functions for this CPU.

    Raises:
        ValueError: the package holds no library for this CPU, and none can be compiled here.
    """
    kind = torch.backends.cpu.get_cpu_capability()
    kind = kind if kind in cpu_flags() else "DEFAULT"
    wanted = fingerprint(_HERE, kind)
    return _from_package(kind, wanted) or _from_cache(kind, wanted) or _from_temporary_folder(kind, wanted)


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether the compiled functions could be loaded or compiled; asked once per process."""
    try:
        return library() is not None
    except ValueError:
        return False


def cache_folder() -> Path | None:
    """The folder of this user's compiled libraries, or None where the user has no home."""
    if chosen := os.environ.get("CTPO_CACHE_DIR"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return Path(base) / "ctpo" / "native" if os.path.isabs(base) else None


def _from_package(kind: str, wanted: str) -> ctypes.CDLL | None:
    """The library that the wheel brought, or that was compiled when the package was installed; None without one."""
    packaged = _HERE / f"native_{kind.lower()}.so"
    return _load(packaged, wanted) if packaged.exists() else None


def _load(path: Path, wanted: str) -> ctypes.CDLL | None:
    """The library at a path, or None if it cannot be loaded or was compiled from other sources."""
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.ctpo_sources.restype = ctypes.c_char_p
        return loaded if loaded.ctpo_sources() == wanted.encode() else None
    except (OSError, AttributeError):
        return None


def _from_cache(kind: str, wanted: str) -> ctypes.CDLL | None:
    """The library in the user's cache, compiled if it is missing; None where the cache cannot be used."""
    folder = cache_folder()
    try:
        command = _compiler()
        if folder is None:
            return None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _only_ours(folder):
            return None
        file = Path(shutil.which(command[0]) or command[0]).resolve()
        seen = file.stat()
        build = (wanted, kind, command, str(file), seen.st_size, seen.st_mtime_ns)
        key = hashlib.sha256(repr((build, sysconfig.get_config_var("SOABI"))).encode()).hexdigest()[:32]
        target = folder / f"{key}.so"
        if not target.exists():
            _compile_to(target, kind)
        return _load(target, wanted) if _only_ours(target) else None
    except (OSError, ValueError):
        return None  # read-only, full or not allowed: the temporary folder is tried next


def _from_temporary_folder(kind: str, wanted: str) -> ctypes.CDLL:
    """The library compiled for this process alone; it stays in memory after its folder is gone.

    Raises:
        ValueError: no compiler, or one that fails.
    """
    with tempfile.TemporaryDirectory(prefix="ctpo-") as folder:
        target = Path(folder) / "native.so"
        _compile_to(target, kind)
        loaded = _load(target, wanted)
    if loaded is None:
        raise ValueError(
            f'backend: "native": what {_compiler()[0]} compiled cannot be loaded; use backend="auto".'
        )
    return loaded


def _compiler() -> list[str]:
    """The command of the C compiler.

    Raises:
        ValueError: there is none.
    """
    command = compiler()
    if not command:
        raise ValueError(
            'backend: "native" needs a C compiler; install gcc or clang, name one in CC, or use backend="auto".'
        )
    return command


def _compile_to(target: Path, kind: str) -> None:
    """Compile the library to a path. The file appears there complete or not at all.

    Raises:
        ValueError: the compiler fails.
        OSError: the folder cannot be written to.
    """
    command = _compiler()
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, *arguments(_HERE, kind, Path(name))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_COMPILE_SECONDS,
        )
        if done.returncode:
            raise ValueError(
                f'backend: "native": {command[0]} failed ({done.stderr[-300:].strip()}); '
                'name another compiler in CC, or use backend="auto".'
            )
        os.chmod(name, 0o700)
        with open(name, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(name, target)
    except FileNotFoundError as error:
        raise ValueError(
            f'backend: "native": {error}; name a compiler in CC, or use backend="auto".'
        ) from None
    except subprocess.TimeoutExpired:
        raise ValueError(
            f'backend: "native": {command[0]} took more than {_COMPILE_SECONDS} s; use backend="auto".'
        ) from None
    finally:
        Path(name).unlink(missing_ok=True)


def _only_ours(path: Path) -> bool:
    """Whether this user owns a file or folder, and nobody else can write to it or exchange it."""
    if not hasattr(os, "geteuid"):
        return True
    seen = path.lstat()
    if stat.S_ISLNK(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
        return False
    above = [folder.stat().st_mode for folder in path.resolve().parents]
    return not any(mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in above)
