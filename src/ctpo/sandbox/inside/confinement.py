"""The confinement of a program: prepared once in the zygote, applied in each child before it reads its program."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from typing import Any

from . import kernel
from .wire import Configuration

_NOBODY = 65534
_PATH_BENEATH = 1
# The flags of a mount as statvfs shows them, and as mount takes them. The last three are about access times.
_LOCKED_FLAGS = {
    1: kernel.MS_RDONLY,
    2: kernel.MS_NOSUID,
    4: kernel.MS_NODEV,
    8: kernel.MS_NOEXEC,
    1024: 1024,
    2048: 2048,
    4096: 1 << 21,
}


def isolate(config: Configuration) -> None:
    """Apply the part of the confinement that holds for the zygote too and that every child inherits."""
    if config.namespaces:
        _protect_devices()
    if config.uid is not None:
        os.setgroups([])
    if not config.confine:
        return
    kernel.call("prctl", kernel.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if config.landlock is not None:
        os.chdir("/")
        _give_up_privileges(config.uid, [path for path, _ in config.landlock["rules"]])
        _restrict_files(config.landlock)
        # Children of one user may look at each other and at the zygote. So /proc would open the pipes of a child that
        # waits for its program, whatever Landlock's rules are. This closes /proc/<pid>/fd, also in all children.
        kernel.call("prctl", kernel.PR_SET_DUMPABLE, 0, 0, 0, 0)
    config.address_space = kernel.mapped_bytes()
    _limit_resources(config)
    kernel.call("prctl", *_filter_arguments(config.zygote_filter))


def _filter_arguments(code: bytearray) -> tuple[Any, ...]:
    """The arguments of `prctl` that install a filter. They refer to `code`, which must stay where it is."""
    address = ctypes.addressof((ctypes.c_char * len(code)).from_buffer(code))
    program = struct.pack("@HP", len(code) // 8, address)
    return kernel.PR_SET_SECCOMP, kernel.SECCOMP_MODE_FILTER, program, 0, 0


def confinement_steps(config: Configuration) -> list[tuple[Any, tuple[Any, ...]]]:
    """The calls that confine a child, prepared once: each line of code that a child runs copies shared pages."""
    steps: list[tuple[Any, tuple[Any, ...]]] = []
    scratch = (config.scratch or "/").encode()
    if config.namespaces:
        owner = "" if config.uid is None else f",uid={config.uid},gid={config.uid}"
        options = f"size={config.scratch_bytes},nr_inodes=2048,mode=700{owner}".encode()
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        steps.append((kernel.libc.unshare, (kernel.CLONE_NEWNS,)))
        steps.append((kernel.libc.mount, (b"tmpfs", scratch, b"tmpfs", flags, options)))
    else:
        steps.append((kernel.libc.prctl, (kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)))
    if config.namespaces and config.uid is not None:
        steps.append((kernel.libc.setresgid, (config.uid,) * 3))
        steps.append((kernel.libc.setresuid, (config.uid,) * 3))
    if config.confine:
        # Not for the zygote: outside a user namespace all threads of the user count, also those of the trainer.
        bound = struct.pack("@2L", config.tasks, config.tasks)
        steps.append((kernel.libc.setrlimit, (resource.RLIMIT_NPROC, bound)))
    if config.namespaces:
        steps.append((kernel.libc.chdir, (scratch,)))
        steps.append((kernel.libc.capset, (struct.pack("<Ii", kernel.CAPABILITY_VERSION_3, 0), bytes(24))))
    if config.confine:
        steps.append((kernel.libc.prctl, _filter_arguments(config.filter)))
    return steps


def _limit_resources(config: Configuration) -> None:
    """Set the limits that every child inherits. The zygote needs far less. A child sets its CPU time itself."""
    address_space = config.address_space + config.memory
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_NICE", 0),
        ("RLIMIT_RTPRIO", 0),
        # Queued signals are counted per user, so programs could count each other's. Ordinary ones need no queue.
        ("RLIMIT_SIGPENDING", 0),
        ("RLIMIT_NOFILE", config.descriptors),
        ("RLIMIT_FSIZE", config.scratch_bytes),
        ("RLIMIT_STACK", 8 << 20),
        ("RLIMIT_AS", address_space),
    ):
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def _protect_devices() -> None:
    """Remount the devices read-only: programs can still write to them, but chmod and utime no longer work.

    Their inodes belong to the host, and a sandbox that root started would own them.
    """
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NOEXEC
        present = os.statvfs(path).f_flag
        # Flags inherited from the host are locked and must be named again.
        for shown, flag in _LOCKED_FLAGS.items():
            flags |= flag if present & shown else 0
        kernel.call("mount", None, path.encode(), None, flags, None)


def _restrict_files(rules: dict[str, Any]) -> None:
    """Apply Landlock to the zygote, and so to everything that it forks."""
    attributes = struct.pack("<QQQ", rules["files"], rules["network"], rules["scopes"])
    ruleset = kernel.libc.syscall(
        kernel.LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(rules["size"]), 0
    )
    if ruleset < 0:
        raise kernel.failure("landlock_create_ruleset")
    for path, rights in rules["rules"]:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        beneath = struct.pack("<Qi", rights, parent)
        if kernel.libc.syscall(kernel.LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, beneath, 0) != 0:
            raise kernel.failure(f"landlock_add_rule for {path}")
        os.close(parent)
    if kernel.libc.syscall(kernel.LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        raise kernel.failure("landlock_restrict_self")
    os.close(ruleset)


def _give_up_privileges(user: int | None, readable: list[str]) -> None:
    """Give up every capability outside a namespace and, as root, become `user` for good.

    Root is exempt from RLIMIT_NPROC and owns most files. If others cannot read the interpreter's files, this process
    keeps the one capability to read and search, which Landlock restricts to the same files.
    """
    kept = 0
    if user is not None:
        try:
            os.setegid(user)
        except OSError:  # this container has fewer users
            user = _NOBODY
            os.setegid(user)
        os.seteuid(user)
        if not all(os.access(path, os.R_OK, effective_ids=True) for path in readable):
            kept = 1 << kernel.CAP_DAC_READ_SEARCH
        os.seteuid(0)
        os.setegid(0)
        for capability in range(64):
            if kernel.libc.prctl(kernel.PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                break
        kernel.call("prctl", kernel.PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = struct.pack("<Ii", kernel.CAPABILITY_VERSION_3, 0)
    kernel.call("capset", header, struct.pack("<6I", kept, kept, 0, 0, 0, 0))
