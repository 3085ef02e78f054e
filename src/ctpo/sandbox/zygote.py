"""The zygote: an interpreter warmed up once, which forks one confined child for every program.

Runs inside the isolation as a plain script (`python -I -S zygote.py FD`): standard library only, no import
from this package. It is trusted and single-threaded, and never sees a program or its output: the
supervisor hands it three pipe ends for each child (program in, stdout, stderr), which the child takes and the
zygote closes. A child is confined before the program reaches it, so that it may wait, ready, as a spare.

Wire (SOCK_SEQPACKET): to the zygote a JSON configuration, then `F<id>` with three descriptors (fork) and
`K<id>` (kill); from it `R<json>` once (ready), then `X<id><wait status><user s><system s><max KiB>` for each
child, sent only after the child is reaped. End of file on the socket ends the zygote and all it started.
"""

from __future__ import annotations

import _thread
import array
import atexit
import base64
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import types
from typing import Any, NoReturn

REQUEST = struct.Struct("<cQ")
EXITED = struct.Struct("<cQiddq")
HEADER = struct.Struct("<QQ")  # before the program's text: bytes of memory, seconds of CPU

EXIT_MEMORY, EXIT_SETUP = 97, 98

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 8, 24, 38
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_CAPABILITY_VERSION_3, _CAP_DAC_READ_SEARCH = 0x20080522, 2
_NOBODY = 65534
_TRACEBACK_CHARS = 4096
_PROGRAM_NAME = "<program>"

# PyDLL: there is one thread, so nobody else could use the interpreter lock during a call.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _call(name: str, *args: Any) -> None:
    """Call a libc function and raise OSError with its name where it fails."""
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


class _Config:
    """What the supervisor sent first."""

    def __init__(self, raw: bytes) -> None:
        fields: dict[str, Any] = json.loads(raw)
        self.namespaces: bool = fields["namespaces"]
        self.confine: bool = fields["confine"]
        self.preload: str = fields["preload"]
        self.paths: list[str] = fields["paths"]
        self.memory: int = fields["memory_bytes"]
        self.scratch: str | None = fields["scratch"]
        self.scratch_bytes: int = fields["scratch_bytes"]
        self.descriptors: int = fields["descriptors"]
        self.tasks: int = fields["tasks"]
        self.landlock: dict[str, Any] | None = fields["landlock"]
        self.uid: int | None = fields["uid"]
        self.filter = bytearray(base64.b64decode(fields["filter"]))
        self.pid_offsets: list[int] = fields["pid_offsets"]
        self.address_space = 0  # what the warm interpreter itself maps; measured later


# --- the program, in the child ------------------------------------------------------------------------------


def _read_program() -> tuple[int, int, str]:
    """Read descriptor 3 to its end: header, then text. An empty pipe means the supervisor gave this child up."""
    chunks = []
    while chunk := os.read(3, 1 << 20):
        chunks.append(chunk)
    os.close(3)
    data = b"".join(chunks)
    if len(data) < HEADER.size:
        os._exit(0)
    memory, cpu = HEADER.unpack_from(data)
    return memory, cpu, data[HEADER.size :].decode("utf-8", "surrogatepass")


def _reseed() -> None:
    """Give this child a numpy random state of its own; `random` reseeds itself after a fork."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _own_frames(report: Any) -> None:
    """Keep only the program's own frames, here and in the exceptions behind this one."""
    report.stack[:] = [frame for frame in report.stack if frame.filename == _PROGRAM_NAME]
    behind = [report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())]
    for other in behind:
        if other is not None:
            _own_frames(other)


def _print_traceback(error: BaseException, text: str) -> None:
    import linecache
    import traceback

    linecache.cache[_PROGRAM_NAME] = (len(text), None, text.splitlines(keepends=True), _PROGRAM_NAME)
    report = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    _own_frames(report)
    shown = "".join(report.format())
    if len(shown) > 2 * _TRACEBACK_CHARS:  # a syntax error quotes its line, however long
        shown = shown[:_TRACEBACK_CHARS] + " [...] " + shown[-_TRACEBACK_CHARS:]
    sys.stderr.write(shown)


def _exit_code(stop: SystemExit) -> int:
    """What `sys.exit(x)` means, as the interpreter has it; our two private codes become a plain 1."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        code = stop.code & 0xFF
        return 1 if code in (EXIT_MEMORY, EXIT_SETUP) else code
    print(stop.code, file=sys.stderr)
    return 1


def _finish(code: int) -> int:
    """End as an interpreter does: wait for threads, run exit handlers, flush."""
    if _thread._count():
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _execute(text: str) -> int:
    """Run the program as `__main__` and return the exit code."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        try:
            exec(compile(text, _PROGRAM_NAME, "exec", dont_inherit=True), module.__dict__)
            return _finish(0)
        except SystemExit as stop:
            return _finish(_exit_code(stop))
        except MemoryError:
            raise
        except BaseException as error:
            _print_traceback(error, text)
            return _finish(1)
    except MemoryError:
        os.write(2, b"MemoryError\n")
        return EXIT_MEMORY


def _run(config: _Config) -> NoReturn:
    """Wait for the program, then run it. Whatever happens, the child ends here."""
    code = 1
    try:
        memory, cpu, text = _read_program()
        if config.confine:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
            if memory < config.memory:
                limit = config.address_space + memory
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        _reseed()
        code = _execute(text)
    finally:
        os._exit(code)


# --- confinement, in the child ------------------------------------------------------------------------------


def _confinement_steps(config: _Config) -> list[tuple[Any, tuple[Any, ...]]]:
    """The calls that confine a child, prepared once: every line a child runs copies pages the zygote shares."""
    steps: list[tuple[Any, tuple[Any, ...]]] = []
    scratch = (config.scratch or "/").encode()
    if config.namespaces:
        owner = "" if config.uid is None else f",uid={config.uid},gid={config.uid}"
        options = f"size={config.scratch_bytes},nr_inodes=2048,mode=700{owner}".encode()
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        steps.append((_libc.unshare, (_CLONE_NEWNS,)))
        steps.append((_libc.mount, (b"tmpfs", scratch, b"tmpfs", flags, options)))
    else:
        steps.append((_libc.prctl, (_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)))
    if config.uid is not None:
        steps.append((_libc.setresgid, (config.uid,) * 3))
        steps.append((_libc.setresuid, (config.uid,) * 3))
    if config.namespaces:
        steps.append((_libc.chdir, (scratch,)))
        steps.append((_libc.capset, (struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), bytes(24))))
    if config.confine:
        code = (ctypes.c_char * len(config.filter)).from_buffer(config.filter)
        program = struct.pack("@HP", len(config.filter) // 8, ctypes.addressof(code))
        steps.append((_libc.prctl, (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)))
    return steps


def _limit_resources(config: _Config) -> None:
    """Set what every child inherits; the zygote itself lives well within it. CPU time is the child's own."""
    address_space = config.address_space + config.memory
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_NICE", 0),
        ("RLIMIT_RTPRIO", 0),
        ("RLIMIT_SIGPENDING", 256),
        ("RLIMIT_NPROC", config.tasks),
        ("RLIMIT_NOFILE", config.descriptors),
        ("RLIMIT_FSIZE", config.scratch_bytes),
        ("RLIMIT_STACK", 8 << 20),
        ("RLIMIT_AS", address_space),
    ):
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


def _child(zygote: _Zygote, descriptors: list[int]) -> NoReturn:
    """Take the pipe ends (program on 3, stdout on 1, stderr on 2, an empty stdin), confine, run."""
    config = zygote.config
    try:
        code, out, err = descriptors
        os.dup2(zygote.null, 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        if code != 3:
            os.dup2(code, 3)
        os.closerange(4, 1 << 16)
        for offset in config.pid_offsets:
            struct.pack_into("<I", config.filter, offset, os.getpid())
        for function, arguments in zygote.steps:
            if function(*arguments) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
        if not config.namespaces and os.getppid() != zygote.pid:
            os._exit(EXIT_SETUP)  # the zygote died before the parent-death signal was asked for
    except BaseException as error:
        os.write(2, f"sandbox set-up failed: {error}\n".encode())
        os._exit(EXIT_SETUP)
    _run(config)


# --- the zygote ---------------------------------------------------------------------------------------------


def _mapped_bytes() -> int:
    """How much address space this process maps, found by lowering RLIMIT_AS until a page no longer fits."""
    page = resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    low, high = 0, 1 << 40
    while high - low > 1 << 16:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (middle, hard))
        address = _libc.mmap(None, page, 3, 0x22, -1, 0)
        if address == ctypes.c_void_p(-1).value:
            low = middle
        else:
            _libc.munmap(address, page)
            high = middle
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return high


# Left out: hashlib, tempfile, shutil, asyncio. They map libraries (OpenSSL, lzma) whose pages every fork copies.
_LEAN = (
    "abc array ast atexit bisect cmath collections collections.abc contextlib copy dataclasses datetime decimal "
    "enum fractions functools heapq inspect io itertools json keyword linecache math numbers operator queue random "
    "re statistics string struct textwrap threading time traceback types typing unicodedata warnings weakref"
)

_FULL = "asyncio base64 bz2 concurrent.futures csv hashlib logging lzma pathlib pprint shutil tempfile uuid zlib"

_WARM_LEAN = """
import json, random, re, fractions, decimal, statistics, datetime, collections, itertools, functools, math, traceback
json.loads(json.dumps({"a": [1, 2.5, None]})); re.sub(r"(\\d+)", r"<\\1>", "a1b22"); random.sample(range(9), 3)
str(fractions.Fraction(3, 4) + 1); str(decimal.Decimal("1.1") ** 3); statistics.mean([1, 2, 3])
datetime.date(2020, 1, 1).isoformat(); collections.Counter("aab").most_common(1); math.comb(9, 3)
print(f"{3 + 67:>5} {2 / 3:.4f}", end="")
"""

_WARM_NUMPY = """
import numpy as np
a = np.arange(16.0).reshape(4, 4) + np.eye(4) * 9
np.linalg.solve(a, a[0]); np.linalg.eigvals(a); np.linalg.inv(a); np.linalg.det(a); (a @ a).sum(axis=0)
np.random.rand(3); np.random.default_rng(0).normal(size=3); str(a); np.sort(a, axis=None); np.mean(a); np.fft.fft(a[0])
"""

_WARM_SYMPY = """
from sympy import *
x, y = symbols("x y"); n = symbols("n", integer=True, positive=True)
solve(x**2 - 5*x + 6, x); solve([x + y - 3, x - y - 1], [x, y]); simplify(sin(x)**2 + cos(x)**2)
factor(x**4 - 1); expand((x + 1)**5); diff(sin(x)*exp(x), x); integrate(x*exp(x), x); integrate(1/(1 + x**2), (x, 0, 1))
limit(sin(x)/x, x, 0); series(exp(x), x, 0, 4); Matrix([[1, 2], [3, 4]]).inv(); Matrix([[2, 1], [1, 2]]).eigenvals()
Rational(3, 4) + Rational(1, 3); N(pi, 30); sqrt(8); latex(x**2/2); factorint(360); isprime(97); nsimplify(0.5)
summation(n, (n, 1, 10)); gcd(12, 18); binomial(10, 3); str(sqrt(2)*x); Eq(x, 1); solveset(x**2 - 1, x); parse_expr("x+1")
"""


def _warm_up(preload: str) -> list[str]:
    """Import and really use what programs use; return the third-party packages that were there."""
    found = []
    for name in _LEAN.split():
        try:
            __import__(name)
        except ImportError:
            continue
    exercises = [("", _WARM_LEAN)]
    if preload == "full":
        for name in _FULL.split():
            __import__(name)
        exercises += [("numpy", _WARM_NUMPY), ("sympy", _WARM_SYMPY)]
    for package, text in exercises:
        try:
            if package:
                __import__(package)
                found.append(package)
            exec(compile(text, "<warm-up>", "exec"), {"__name__": "__warm_up__"})
        except Exception:
            continue  # an absent or odd package leaves programs slower, not wrong
    return found


class _Zygote:
    """The loop: fork, kill and reap, as the supervisor asks."""

    def __init__(self, control: socket.socket, config: _Config) -> None:
        self.control = control
        self.config = config
        self.pid = os.getpid()
        self.steps = _confinement_steps(config)
        self.null = os.open(  # not the inherited one, which is on the host's writable mount
            "/dev/null", os.O_RDONLY
        )
        self.poller = select.poll()
        self.poller.register(control.fileno(), select.POLLIN)
        self.pids: dict[int, int] = {}  # id -> process
        self.watched: dict[int, tuple[int, int]] = {}  # pidfd -> (id, process)
        self.self_fd = os.pidfd_open(self.pid) if config.namespaces else -1

    def serve(self) -> NoReturn:
        while True:
            for fd, _ in self.poller.poll():
                if fd in self.watched:
                    self.reap(fd)
                elif fd == self.control.fileno():
                    self.obey()

    def obey(self) -> None:
        room = socket.CMSG_SPACE(3 * 4)
        message, ancillary, _, _ = self.control.recvmsg(64, room)
        if not message:
            self.end()
        kind, identity = REQUEST.unpack(message)
        if kind == b"F":
            descriptors = array.array("i")
            descriptors.frombytes(ancillary[0][2])
            self.fork(identity, list(descriptors))
        elif identity in self.pids:
            os.kill(self.pids[identity], signal.SIGKILL)

    def fork(self, identity: int, descriptors: list[int]) -> None:
        if self.config.namespaces:
            _call("unshare", _CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            _child(self, descriptors)
        if self.config.namespaces:
            # The next unshare is refused unless this process's children are to be born in its own namespace.
            _call("setns", self.self_fd, _CLONE_NEWPID)
        for fd in descriptors:
            os.close(fd)
        watch = os.pidfd_open(pid)
        self.pids[identity] = pid
        self.watched[watch] = (identity, pid)
        self.poller.register(watch, select.POLLIN)

    def reap(self, watch: int) -> None:
        identity, pid = self.watched.pop(watch)
        self.poller.unregister(watch)
        os.close(watch)
        _, status, usage = os.wait4(pid, 0)
        del self.pids[identity]
        self.control.send(
            EXITED.pack(b"X", identity, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
        )

    def end(self) -> NoReturn:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _protect_devices() -> None:
    """Remount the devices read-only: still written to as devices, but no longer open to chmod and utime.

    Their inodes are the host's, and a sandbox started by root would own them.
    """
    kept = {1: _MS_RDONLY, 2: _MS_NOSUID, 4: _MS_NODEV, 8: _MS_NOEXEC, 1024: 1024, 2048: 2048, 4096: 1 << 21}
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NOEXEC
        present = os.statvfs(path).f_flag
        for shown, flag in kept.items():  # flags inherited from the host are locked and must be named again
            flags |= flag if present & shown else 0
        _call("mount", None, path.encode(), None, flags, None)


def _restrict_files(rules: dict[str, Any]) -> None:
    """Apply Landlock to the zygote, and so to all it forks."""
    attributes = struct.pack("<QQQ", rules["files"], rules["network"], rules["scopes"])
    ruleset = _libc.syscall(444, attributes, ctypes.c_size_t(rules["size"]), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset failed")
    for path, rights in rules["rules"]:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if _libc.syscall(445, ruleset, 1, struct.pack("<Qi", rights, parent), 0) != 0:
            raise OSError(ctypes.get_errno(), f"landlock_add_rule failed for {path}")
        os.close(parent)
    if _libc.syscall(446, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "landlock_restrict_self failed")
    os.close(ruleset)


def _become_nobody(readable: list[str]) -> None:
    """As root, outside a namespace: become nobody for good, without any capability.

    Root is exempt from RLIMIT_NPROC and owns most files. Where nobody could not read the interpreter's files, it
    keeps the one capability to read and search, which Landlock holds to the same files.
    """
    kept = 0
    if os.geteuid() == 0:
        os.setgroups([])
        os.setegid(_NOBODY)
        os.seteuid(_NOBODY)
        if not all(os.access(path, os.R_OK, effective_ids=True) for path in readable):
            kept = 1 << _CAP_DAC_READ_SEARCH
        os.seteuid(0)
        os.setegid(0)
        for capability in range(64):
            if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                break
        _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _call("capset", header, struct.pack("<6I", kept, kept, 0, 0, 0, 0))


def _isolate_self(config: _Config) -> None:
    """What holds for the zygote already, and is inherited by every child."""
    if config.namespaces:
        _protect_devices()
    if config.uid is not None:
        os.setgroups([])
    if not config.confine:
        return
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if config.landlock is not None:
        os.chdir("/")
        _become_nobody([path for path, _ in config.landlock["rules"]])
        _restrict_files(config.landlock)
    config.address_space = _mapped_bytes()
    _limit_resources(config)


def main() -> NoReturn:
    control = socket.socket(fileno=int(sys.argv[1]))
    config = _Config(control.recv(1 << 18))
    sys.path += config.paths
    sys.argv = [""]
    sys.dont_write_bytecode = True
    # Anything the warm-up prints stays in this buffer, not in the first program's output.
    outside, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    found = _warm_up(config.preload)
    sys.stdout = outside
    os.environ.clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _isolate_self(config)
    # Changing user clears the parent-death signal, so it is asked for last; the socket's end covers the gap.
    _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    gc.collect()
    gc.freeze()
    zygote = _Zygote(control, config)
    control.send(b"R" + json.dumps({"found": found, "address_space": config.address_space}).encode())
    zygote.serve()


if __name__ == "__main__":
    main()
