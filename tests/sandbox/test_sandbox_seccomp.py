"""The filter's verdicts on both architectures, by an interpreter of BPF that was written from BPF's description."""

from __future__ import annotations

import struct

import pytest

from ctpo.sandbox.isolation import seccomp, syscalls

ALLOW, EPERM, ENOSYS, ENOTSUP, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x0005005F, 0x80000000
EAGAIN, SUCCESS = 0x0005000B, 0x00050000
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OWN = 4321
THREAD = 0x3D0F00


def verdict(
    machine: str, number: int, *args: int, arch: int | None = None, file_metadata: bool = True
) -> int:
    """What happens to a program's system call. The kernel runs both filters, and the strictest verdict counts."""
    words = [word & (2**64 - 1) for word in (*args, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<IIQ6Q", number, ARCHES[machine] if arch is None else arch, 0, *words)
    verdicts = [run(part, data) for part in seccomp.build_filters(machine, file_metadata=file_metadata)]
    return min(
        reversed(verdicts), key=lambda value: struct.unpack("<i", struct.pack("<I", value & 0xFFFF0000))
    )


def run(filter_: seccomp.Filter, data: bytes) -> int:
    """Run one filter on one system call."""
    program = bytearray(filter_.program)
    for offset in filter_.pid_offsets:
        struct.pack_into("<I", program, offset, OWN)
    accumulator, at = 0, 0
    while True:
        code, jt, jf, k = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:
            accumulator &= k
        elif code == 0x05:
            at += k
        elif code == 0x15:
            at += jt if accumulator == k else jf
        elif code == 0x35:
            at += jt if accumulator >= k else jf
        elif code == 0x06:
            return k
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


@pytest.fixture(params=ARCHES)
def machine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def _table(machine: str) -> dict[str, int]:
    return syscalls.X86_64 if machine == "x86_64" else syscalls.AARCH64


def test_everything_not_listed_is_refused(machine: str) -> None:
    table = _table(machine)
    assert len(set(table.values())) == len(table)
    listed = {number for name, number in table.items() if name not in seccomp.ZYGOTE_ONLY}
    for number in (*range(600), 0x40000000 + 39, 0xFFFFFFFF):
        if number not in listed:
            assert verdict(machine, number) == EPERM, number


def test_plain_calls_are_allowed(machine: str) -> None:
    table = _table(machine)
    for name in (
        "read",
        "write",
        "openat",
        "mmap",
        "exit_group",
        "getrandom",
        "rt_sigreturn",
        "wait4",
    ):
        assert verdict(machine, table[name], 2**63, 2**63) == ALLOW, name


def test_another_architecture_is_killed(machine: str) -> None:
    assert verdict(machine, 0, arch=0x40000003) == KILL  # 32-bit x86


def test_calls_that_never_appear() -> None:
    """The numbers of dangerous calls, typed by hand from the kernel's tables."""
    x86 = {"fork": 57, "vfork": 58, "execve": 59, "socket": 41, "connect": 42, "ptrace": 101, "execveat": 322}
    x86 |= {
        "unshare": 272,
        "setns": 308,
        "mount": 165,
        "bpf": 321,
        "memfd_create": 319,
        "shmget": 29,
        "sendmsg": 46,
    }
    x86 |= {
        "io_uring_setup": 425,
        "process_vm_readv": 310,
        "pidfd_open": 434,
        "keyctl": 250,
        "userfaultfd": 323,
    }
    arm = {
        "execve": 221,
        "socket": 198,
        "connect": 203,
        "ptrace": 117,
        "execveat": 281,
        "unshare": 97,
        "setns": 268,
    }
    arm |= {
        "mount": 40,
        "bpf": 280,
        "memfd_create": 279,
        "shmget": 194,
        "sendmsg": 211,
        "io_uring_setup": 425,
    }
    arm |= {"process_vm_readv": 270, "pidfd_open": 434, "keyctl": 219, "userfaultfd": 282, "bind": 200}
    for machine, numbers in (("x86_64", x86), ("aarch64", arm)):
        for name, number in numbers.items():
            assert verdict(machine, number) == EPERM, (machine, name)


def test_the_zygote_has_the_same_list_and_what_it_needs_to_make_children(machine: str) -> None:
    listed, _ = seccomp.build_filters(machine, file_metadata=True)
    table = _table(machine)
    for name in seccomp.ZYGOTE_ONLY & set(table):
        assert run(listed, struct.pack("<IIQ6Q", table[name], ARCHES[machine], *[0] * 7)) == ALLOW
        assert verdict(machine, table[name]) == EPERM
    for number in set(range(600)) - set(table.values()):
        assert run(listed, struct.pack("<IIQ6Q", number, ARCHES[machine], *[0] * 7)) == EPERM


def test_only_threads_can_be_made(machine: str) -> None:
    clone = _table(machine)["clone"]
    assert verdict(machine, clone, THREAD) == ALLOW
    assert verdict(machine, clone, 17) == EPERM
    for flag in (0x2000, 0x4000, 0x8000, 0x20000, 0x80, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, THREAD | flag) == EPERM
    for bit in range(32):
        if THREAD >> bit & 1:
            assert verdict(machine, clone, THREAD & ~(1 << bit)) == EPERM
    assert verdict(machine, _table(machine)["clone3"]) == ENOSYS


def test_signals_reach_only_the_program_itself(machine: str) -> None:
    table = _table(machine)
    assert verdict(machine, table["kill"], OWN, 15) == ALLOW
    assert verdict(machine, table["tgkill"], OWN, OWN + 1, 6) == ALLOW
    for pid in (0, -1, -OWN, 1, OWN + 1):
        assert verdict(machine, table["kill"], pid, 15) == EPERM
        assert verdict(machine, table["tgkill"], pid, OWN, 6) == EPERM
    assert verdict(machine, table["kill"], OWN, 9) == EPERM
    assert verdict(machine, table["tgkill"], OWN, OWN, 9) == EPERM


def test_arguments_that_matter(machine: str) -> None:
    table = _table(machine)
    assert verdict(machine, table["prlimit64"], 0) == ALLOW
    assert verdict(machine, table["prlimit64"], 1) == EPERM
    assert verdict(machine, table["socketpair"], 1, 1 | 0x80800) == ALLOW
    assert verdict(machine, table["socketpair"], 1, 2) == EPERM
    assert verdict(machine, table["socketpair"], 2, 1) == EPERM
    assert verdict(machine, table["sendto"], 3, 4, 5, 0, 0) == ALLOW
    assert verdict(machine, table["sendto"], 3, 4, 5, 0, 1) == EPERM
    assert verdict(machine, table["sendto"], 3, 4, 5, 0, 1 << 32) == EPERM
    for command, expected in (
        (0, ALLOW),
        (4, ALLOW),
        (5, EPERM),
        (6, SUCCESS),  # a lock of the whole process needs no lock
        (7, SUCCESS),
        (8, EPERM),
        (10, EPERM),
        (1024, EPERM),
        (1031, EPERM),
    ):
        assert verdict(machine, table["fcntl"], 3, command) == expected
    for request, expected in ((0x5401, ALLOW), (0x5412, EPERM), (0x5452, EPERM), (0x8901, EPERM)):
        assert verdict(machine, table["ioctl"], 0, request) == expected
    for option, expected in ((15, ALLOW), (1, EPERM), (4, EPERM), (22, EPERM), (35, EPERM), (38, EPERM)):
        assert verdict(machine, table["prctl"], option) == expected


def test_no_lock_or_hint_stays_on_a_file(machine: str) -> None:
    fcntl = _table(machine)["fcntl"]
    allowed = {command for command in range(2048) if verdict(machine, fcntl, 3, command) == ALLOW}
    assert allowed == {0, 1, 2, 3, 4, 1030}  # descriptors and their flags


def test_futexes_are_private(machine: str) -> None:
    """Only the private flag keeps a futex on a page of a file from being another program's too."""
    futex = _table(machine)["futex"]
    for operation in range(128):
        for realtime in (0, 256):
            assert verdict(machine, futex, 1 << 40, operation | 128 | realtime) == ALLOW
            expected = {0: EAGAIN, 9: EAGAIN, 1: SUCCESS, 10: SUCCESS}.get(operation, EPERM)
            assert verdict(machine, futex, 1 << 40, operation | realtime) == expected
    for number in (449, 454, 455, 456):  # futex_waitv and its successors have their flags behind a pointer
        assert verdict(machine, number) == EPERM


def test_clocks_are_the_machines_or_the_programs_own(machine: str) -> None:
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep"):
        number = _table(machine)[name]
        for clock in (*range(12), -6, -2, ~OWN << 3 | 6):
            assert verdict(machine, number, clock) == ALLOW, clock
        for pid in (1, 2, 7, 8, OWN, 32767, 4194303):
            for kind in (0, 1, 2, 3):  # the fourth is a device's clock
                assert verdict(machine, number, ~pid << 3 | kind) == EPERM, (pid, kind)
    for number in {"x86_64": (222, 223), "aarch64": (107, 110)}[machine]:  # timers on a clock
        assert verdict(machine, number, 1) == EPERM


def test_counters_of_the_machine_are_not_shown(machine: str) -> None:
    table = _table(machine)
    assert verdict(machine, {"x86_64": 99, "aarch64": 179}[machine]) == EPERM  # sysinfo
    for name in ("preadv2", "pwritev2"):
        assert verdict(machine, table[name], 3, 4, 1, 0, 0, 0) == ALLOW
        assert verdict(machine, table[name], 3, 4, 1, 0, 0, 8) == EPERM  # RWF_NOWAIT: is the page cached?
    assert verdict(machine, table["mmap"], 0, 4096, 3, 0x22) == ALLOW
    assert verdict(machine, table["mmap"], 0, 1 << 21, 3, 0x40022) == EPERM  # huge pages
    assert verdict(machine, table["getsockopt"], 3, 1, 3) == ALLOW
    for level, option in ((1, 57), (1, 17), (0, 3), (41, 3)):  # SO_COOKIE, SO_PEERCRED, other levels
        assert verdict(machine, table["getsockopt"], 3, level, option) == EPERM


def test_modes_and_times_only_behind_read_only_mounts(machine: str) -> None:
    names = [name for name in seccomp.FILE_METADATA if name in _table(machine)]
    assert {"fchmod", "utimensat"} <= set(names)
    for name in names:
        number = _table(machine)[name]
        assert verdict(machine, number) == ALLOW
        assert verdict(machine, number, file_metadata=False) == EPERM


def test_extended_attributes_are_not_supported(machine: str) -> None:
    assert verdict(machine, _table(machine)["listxattr"]) == ENOTSUP


def test_the_disk_and_the_page_cache_are_left_alone(machine: str) -> None:
    table = _table(machine)
    for name in ("fsync", "fdatasync", "msync", "fadvise64"):
        assert verdict(machine, table[name], 3) == 0x00050000, "pretends success without the call"
    assert verdict(machine, table["madvise"], 0, 4096, 4) == ALLOW
    for advice in (20, 21, 100, 101):
        assert verdict(machine, table["madvise"], 0, 4096, advice) == EPERM


def test_unknown_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="machine 'riscv64'"):
        seccomp.build_filters("riscv64", file_metadata=True)
