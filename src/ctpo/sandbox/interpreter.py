"""The files that the warm interpreter needs, wherever Python is installed. It sees these and no others."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Python shares these prefixes with the rest of the system. Only their library folders belong to it.
_SHARED_PREFIXES = {Path("/"), Path("/usr"), Path("/usr/local")}
_SYSTEM_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
_PRELOADED = ("numpy", "sympy", "mpmath")


@dataclass(frozen=True)
class Interpreter:
    """A Python executable and the files that it reads.

    Args:
        executable: the real path of the base interpreter (not a virtual environment's link).
        readable: the files and folders it needs; none is inside another.
        packages: the folders with third-party packages, which are appended to `sys.path`.
    """

    executable: Path
    readable: tuple[Path, ...]
    packages: tuple[Path, ...]


def find_interpreter() -> Interpreter:
    """The interpreter that is running now. So programs get the same Python and the same packages."""
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
    return Interpreter(executable, _outermost(readable), packages)


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
    existing = sorted({Path(os.path.abspath(path)) for path in paths if path.exists()})
    return tuple(p for p in existing if not any(other in p.parents for other in existing))
