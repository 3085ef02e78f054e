"""The system-call filters of every program, in classic BPF: an allow-list, which also looks at arguments where needed.

They are assembled here and installed inside the sandbox (`inside/`), so libseccomp is not needed. A call that is not
listed fails with EPERM. There are two, and the kernel asks both. The long one is the zygote's, and its children inherit
it. It also allows what the zygote needs itself. The short one takes that away. Each child installs it for itself, which
takes a third of the time that the long one would take.

Source: the kernel's `Documentation/userspace-api/seccomp_filter.rst`.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ctpo.sandbox.isolation import syscalls

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_TABLES = {"x86_64": syscalls.X86_64, "aarch64": syscalls.AARCH64}

# struct seccomp_data: nr, arch, instruction_pointer (8), args[6] (8 each), little-endian on both machines.
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_ARGS = 0, 4, 16
_LD, _JA, _JEQ, _JGE, _AND, _RET = 0x20, 0x05, 0x15, 0x35, 0x54, 0x06
_RET_KILL, _RET_ERRNO, _RET_ALLOW = 0x80000000, 0x00050000, 0x7FFF0000

OWN_PID = -1
"""A placeholder for the program's own process id, which the child fills in."""


@dataclass(frozen=True)
class Check:
    """A test of one argument: its low word, masked, equals `value`. With `wide`, its high word must be 0 too."""

    arg: int
    value: int
    mask: int = 0xFFFFFFFF
    wide: bool = False


@dataclass(frozen=True)
class Rule:
    """If every check holds, this is what happens to the call."""

    checks: tuple[Check, ...]
    verdict: int = _RET_ALLOW


@dataclass(frozen=True)
class Filter:
    """An assembled filter, and the byte offsets to which the child writes its own process id."""

    program: bytes
    pid_offsets: tuple[int, ...]


def _success(*checks: Check) -> Rule:
    """A call that does nothing and reports success."""
    return Rule(checks, _RET_ERRNO)


def _error(number: int, *checks: Check) -> Rule:
    """A call that fails with an error number."""
    return Rule(checks, _RET_ERRNO | number)


def _one_of(arg: int, values: Sequence[int]) -> tuple[Rule, ...]:
    """Rules that allow a call if one argument has one of these values."""
    return tuple(Rule((Check(arg, value),)) for value in values)


# The exact flags with which glibc and musl create a thread. No process and no namespace fits these flags.
_GLIBC_THREAD, _MUSL_THREAD = 0x3D0F00, 0x7D0F00
_TERMINAL_AND_CLOEXEC = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# Duplicates, descriptor flags and status flags. Left out: locks and questions about them (a lock on a library file
# could carry messages, and takes memory of the kernel's), F_SETOWN and F_SETSIG (a signal to any process),
# F_SETPIPE_SZ (kernel memory), leases, and hints that stay with a file.
_FCNTL = (0, 1, 2, 3, 4, 1030)
# F_SETLK and F_SETLKW. Between the threads of one process, such a lock never conflicts, so it need not be taken.
_PROCESS_LOCKS = (6, 7)
# What memory allocators need. Left out: paging out memory that others have mapped too, poisoning and merging pages.
_MADVISE = (0, 1, 2, 3, 4, 8, 14, 15)
# Names and read-only questions. Left out: the parent-death signal, dumpability and the memory map.
_PRCTL = (3, 15, 16, 21, 23, 39, 0x53564D41)
_SIGKILL = 9
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
_SOL_SOCKET = 1
# SO_TYPE, SO_ERROR, SO_SNDBUF, SO_RCVBUF, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN. Left out: SO_COOKIE, which is
# counted over the whole machine.
_SOCKET_OPTIONS = (3, 4, 7, 8, 30, 38, 39)
_MAP_HUGETLB = 0x40000
_FUTEX_PRIVATE, _FUTEX_REALTIME = 128, 256
_FUTEX_WAITS, _FUTEX_WAKES = (0, 9), (1, 10)

_ZERO_PID = _one_of(0, (0,))
# The kernel's fixed clocks (0 to 15), the CPU clocks of this process (negative, for process 0), and those of threads.
# The kernel itself refuses the threads of other processes. Left out: CPU clocks of other processes, and devices.
_OWN_CLOCKS = (
    Rule((Check(0, 0, mask=0xFFFFFFF0),)),
    Rule((Check(0, 0xFFFFFFF8, mask=0xFFFFFFF8),)),
    Rule((Check(0, 0x80000006, mask=0x80000007),)),
)
_ONLY_WITHOUT_FLAGS = _one_of(5, (0,))

# The first rule of a call's that holds decides about it. If none holds, the call fails with EPERM.
_RULES: dict[str, tuple[Rule, ...]] = {
    # clone3 has its flags behind a pointer, which a filter cannot follow. ENOSYS makes libc fall back to clone.
    "clone3": (_error(errno.ENOSYS),),
    "ioctl": _one_of(1, _TERMINAL_AND_CLOEXEC),
    "fcntl": (*_one_of(1, _FCNTL), *(_success(Check(1, command)) for command in _PROCESS_LOCKS)),
    "madvise": _one_of(2, _MADVISE),
    "prlimit64": _ZERO_PID,
    "getpgid": _ZERO_PID,
    "getsid": _ZERO_PID,
    "sched_getaffinity": _ZERO_PID,
    "sched_getparam": _ZERO_PID,
    "sched_getscheduler": _ZERO_PID,
    "clock_gettime": _OWN_CLOCKS,
    "clock_getres": _OWN_CLOCKS,
    "clock_nanosleep": _OWN_CLOCKS,
    # A futex without the private flag is found by its place in a file, also through a mapping of one's own. So on a
    # page of a library, two programs could meet. libc waits on such a futex for the end of a thread: it looks again
    # after EAGAIN, and the kernel clears the word.
    "futex": (
        Rule((Check(1, _FUTEX_PRIVATE, mask=_FUTEX_PRIVATE),)),
        *(_error(errno.EAGAIN, Check(1, wait, mask=~_FUTEX_REALTIME)) for wait in _FUTEX_WAITS),
        *(_success(Check(1, wake, mask=~_FUTEX_REALTIME)) for wake in _FUTEX_WAKES),
    ),
    # The machine has a fixed number of huge pages for all.
    "mmap": (Rule((Check(3, 0, mask=_MAP_HUGETLB),)),),
    # A flag says whether a page is in the machine's cache without bringing it there.
    "preadv2": _ONLY_WITHOUT_FLAGS,
    "pwritev2": _ONLY_WITHOUT_FLAGS,
    # A stream pair cannot be redirected to somebody else's socket; a datagram pair can.
    "socketpair": (Rule((Check(0, _AF_UNIX), Check(1, _SOCK_STREAM, mask=_SOCK_TYPE_MASK))),),
    "sendto": (Rule((Check(4, 0, wide=True),)),),
    "getsockopt": tuple(Rule((Check(1, _SOL_SOCKET), Check(2, option))) for option in _SOCKET_OPTIONS),
    # Writing to disk and dropping pages from the cache would cost the host.
    "fsync": (_success(),),
    "fdatasync": (_success(),),
    "msync": (_success(),),
    "fadvise64": (_success(),),
} | dict.fromkeys(
    ("getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr"), (_error(errno.ENOTSUP),)
)
ZYGOTE_ONLY = frozenset(
    """
    fork unshare setns mount umount2 pidfd_open pidfd_send_signal sendmsg setresuid setresgid setgroups capset
    """.split()
)
"""Calls with which the zygote makes, confines and ends its children."""
# The rules of the short filter, which allows everything else.
_CHILD_RULES: dict[str, tuple[Rule, ...]] = {
    "clone": _one_of(0, (_GLIBC_THREAD, _MUSL_THREAD)),
    "prctl": _one_of(0, _PRCTL),
    # A program that killed itself with SIGKILL would look like one that somebody else has killed ("lost"), and would
    # be run twice.
    "kill": (_error(errno.EPERM, Check(1, _SIGKILL)), Rule((Check(0, OWN_PID),))),
    "tgkill": (_error(errno.EPERM, Check(2, _SIGKILL)), Rule((Check(0, OWN_PID),))),
} | dict.fromkeys(ZYGOTE_ONLY, ())
FILE_METADATA = frozenset(
    {"chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "futimesat", "utimensat"}
)
"""Calls that Landlock does not restrict. They are allowed only if everything but the program's tmpfs is read-only."""


def supported_machine() -> str | None:
    """This machine's architecture, or None if there is no system-call table for it."""
    machine = platform.machine()
    return machine if machine in _TABLES else None


def build_filters(machine: str, *, file_metadata: bool) -> tuple[Filter, Filter]:
    """The assembled filters of one architecture: the zygote's allow-list, and what each child adds.

    Args:
        machine: "x86_64" or "aarch64", as `platform.machine()` names them.
        file_metadata: whether to allow chmod and utime, which is safe behind read-only mounts only.

    Raises:
        ValueError: for another machine.
    """
    if machine not in _TABLES:
        raise ValueError(f"machine {machine!r} has no system-call table; use one of {sorted(_TABLES)}")
    denied = set() if file_metadata else FILE_METADATA
    names = {number: name for name, number in _TABLES[machine].items() if name not in denied}
    listed = _assemble(
        machine, {number: _RULES.get(name, _ALLOWED) for number, name in names.items()}, _REFUSED
    )
    special = {number: _CHILD_RULES[name] for number, name in names.items() if name in _CHILD_RULES}
    return listed, _assemble(machine, special, _ALLOWED)


_ALLOWED, _REFUSED = (Rule(()),), (_error(errno.EPERM),)


def _assemble(machine: str, rules: dict[int, tuple[Rule, ...]], others: tuple[Rule, ...]) -> Filter:
    """A filter with rules for some calls by their numbers, and other rules for all others."""
    code = _Assembler()
    code.emit(_LD, _OFFSET_ARCH)
    code.emit(_JEQ, _AUDIT_ARCH[machine], jt=1)
    code.emit(_RET, _RET_KILL)
    code.emit(_LD, _OFFSET_NR)
    segments = [(0, others)]
    for number in range(max(rules) + 2):
        treatment = rules.get(number, others)
        if treatment != segments[-1][1]:
            segments.append((number, treatment))
    if segments[1][0] == 0:
        del segments[0]
    _emit_tree(code, segments)
    return Filter(bytes(code.program), tuple(code.pid_offsets))


def _emit_tree(code: _Assembler, segments: list[tuple[int, tuple[Rule, ...]]]) -> None:
    """Emit a binary search over ranges of call numbers with the same rules, each given by its first number.

    When the filter is installed, the kernel runs it once for every system call, to learn which are always allowed.
    """
    if len(segments) == 1:
        _emit_rules(code, segments[0][1])
        return
    middle = len(segments) // 2
    left = _Assembler(base=code.length + 2)
    _emit_tree(left, segments[:middle])
    code.emit(_JGE, segments[middle][0], jf=1)
    code.emit(_JA, left.length - left.base)
    code.program += left.program
    code.pid_offsets += left.pid_offsets
    _emit_tree(code, segments[middle:])


def _emit_rules(code: _Assembler, rules: tuple[Rule, ...]) -> None:
    """Emit the treatment of one range of calls. Every path ends in a verdict."""
    for rule in rules:
        code.conjunction(rule.checks, rule.verdict)
        if not rule.checks:
            return
    code.emit(_RET, _RET_ERRNO | errno.EPERM)


class _Assembler:
    """A BPF program that is being assembled. `base` is the index of its first instruction in the whole program."""

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.program = bytearray()
        self.pid_offsets: list[int] = []

    @property
    def length(self) -> int:
        return self.base + len(self.program) // 8

    def emit(self, operation: int, operand: int, *, jt: int = 0, jf: int = 0) -> None:
        assert 0 <= jt < 256, "BPF jumps are 8 bits wide"
        assert 0 <= jf < 256, "BPF jumps are 8 bits wide"
        if operand == OWN_PID:
            self.pid_offsets.append(self.length * 8 + 4)
            operand = 0
        self.program += struct.pack("<HBBI", operation, jt, jf, operand)

    def conjunction(self, checks: Sequence[Check], verdict: int) -> None:
        """Emit instructions that return `verdict` if every check holds and otherwise continue."""
        steps: list[tuple[int, int]] = []
        for check in checks:
            low = _OFFSET_ARGS + 8 * check.arg
            steps.append((_LD, low))
            if check.mask != 0xFFFFFFFF:
                steps.append((_AND, check.mask & 0xFFFFFFFF))
            steps.append((_JEQ, check.value))
            if check.wide:
                steps += [(_LD, low + 4), (_JEQ, 0)]
        for index, (operation, operand) in enumerate(steps):
            # A failed test skips the remaining steps and the verdict after them.
            to_next_rule = len(steps) - index if operation == _JEQ else 0
            self.emit(operation, operand, jf=to_next_rule)
        self.emit(_RET, verdict)
