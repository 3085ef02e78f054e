"""Programs that try to break out, to do harm, or to cheat. Each prints ESCAPED if it succeeds.

`HOSTILE` maps a name to the program and the statuses it may end with. A program reads what the host has prepared
for it from `GIVEN`: `canary` (a file), `folder`, `pid` (the supervisor), `tcp` and `udp` (ports), `abstract`
(a socket's name), `secret` (in the supervisor's environment), `memory_bytes`, `machine`.
"""

# ruff: noqa: E501 - programs are quoted as they run
from __future__ import annotations

PRELUDE = '''
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
X86 = GIVEN["machine"] == "x86_64"
PROBED = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, os.getppid(), GIVEN["pid"]]
OTHERS = sorted({pid for pid in PROBED if pid > 0 and pid != os.getpid()})
def attempt(name, function, *arguments):
    """Print ESCAPED unless the function raises."""
    try:
        function(*arguments)
    except (Exception, SystemExit):
        return
    print("ESCAPED", name)
def call(name, number_x86, number_arm, *arguments):
    """Print ESCAPED unless the system call fails."""
    if libc.syscall(number_x86 if X86 else number_arm, *arguments) != -1:
        print("ESCAPED", name)
'''

ENDS = frozenset({"ok", "error"})
HOSTILE: dict[str, tuple[str, frozenset[str]]] = {}


def _add(name: str, program: str, *statuses: str) -> None:
    assert name not in HOSTILE
    HOSTILE[name] = (program.strip("\n"), frozenset(statuses) or ENDS)


# --- using up the machine -----------------------------------------------------------------------------------

_add("infinite_loop", "while True: pass", "timeout")
_add("sleeps_forever", "time.sleep(1000)", "timeout")
_add("memory_bomb", "hoard = []\nwhile True: hoard.append(bytearray(1 << 20))", "memory")
_add("memory_at_once", "x = bytearray(GIVEN['memory_bytes'] + (1 << 20)); print('ESCAPED')", "memory")
_add(
    "memory_in_threads",
    """
import threading
hoard = []
def fill():
    while True: hoard.append(bytearray(1 << 20))
threads = [threading.Thread(target=fill) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print("ESCAPED" if sum(map(len, hoard)) > GIVEN["memory_bytes"] else "")
""",
)
_add(
    "memory_in_processes",
    """
from multiprocessing import Process
def fill():
    hoard = []
    while True: hoard.append(bytearray(1 << 20))
Process(target=fill).start(); print("ESCAPED")
""",
    "error",
)
_add(
    "huge_mmap",
    "import mmap\nattempt('mmap', mmap.mmap, -1, 1 << 40)\nattempt('mmap', mmap.mmap, -1, 4 << 30)",
)
_add(
    "kernel_memory",
    """
import fcntl
held = []
attempt("pipe size", lambda: fcntl.fcntl(os.pipe()[0], 1031, 1 << 20))
try:
    while True: held.append(os.pipe())
except OSError: pass
print("ESCAPED" if len(held) > 64 else "")
""",
)
_add(
    "page_tables",
    """
# Single pages a gigabyte apart need two page tables each. The first thread ends, and takes its process's sizes with it.
import threading
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
def fill():
    made = 0
    for number in range(1, 70_000):
        if libc.mmap(number << 30, 4096, 3, 0x100022, -1, 0) == number << 30:
            ctypes.c_char.from_address(number << 30).value = b"x"
            made += 1
        if made * 12288 > 2 * GIVEN["memory_bytes"]: return print("ESCAPED", made, flush=True)
threading.Thread(target=fill).start()
libc.syscall(60 if X86 else 93, 0)
""",
    "memory",
)
_add(
    "disk_fill",
    """
total, places = 0, ["/tmp", "/var/tmp", "/dev/shm", "/dev", "/run", "/", "/usr", "/home", "/root", ".", "/sys",
    "/proc", "/mnt", os.path.dirname(os.__file__), GIVEN["folder"], "/run/user/0", "/dev/mqueue", "/lib"]
for number, place in enumerate(places):
    for index in range(100):
        try:
            with open(f"{place}/fill{number}-{index}", "wb", buffering=0) as file:
                while total < (64 << 20): total += file.write(bytes(1 << 18))
        except OSError: break
print("ESCAPED" if total > (17 << 20) else "", total)
""",
)
_add(
    "inode_fill",
    """
made = 0
try:
    for made in range(100_000): open(f"/tmp/{made}", "w").close()
except OSError: pass
print("ESCAPED" if made > 5000 else "")
""",
)
_add("sparse_file", "attempt('truncate', lambda: open('/tmp/x', 'wb').truncate(1 << 40))")
_add("huge_output", "while True: print('x' * 4096)", "output_limit")
_add("huge_stderr", "while True: print('x' * 4096, file=sys.stderr)", "output_limit")
_add("huge_output_at_once", "print('x' * (64 << 20))", "output_limit")
_add(
    "output_from_threads",
    """
import threading
def shout():
    while True: os.write(1, b"x" * 4096)
for _ in range(4): threading.Thread(target=shout, daemon=True).start()
shout()
""",
    "output_limit",
)
_add(
    "fork_bomb",
    """
for _ in range(1000):
    try: pid = os.fork()
    except OSError: continue
    print("ESCAPED", flush=True)
    if pid == 0: os._exit(0)
call("fork", 57, -1); call("vfork", 58, -1); call("clone", 56, 220, 17, 0, 0, 0, 0)
call("clone3", 435, 435, ctypes.create_string_buffer(88), 88)
""",
)
_add(
    "thread_bomb",
    """
import threading
started = 0
try:
    for _ in range(100_000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        started += 1
except (RuntimeError, MemoryError): pass
print("ESCAPED" if started > 2000 else "", started, flush=True)
os._exit(0)
""",
    "ok",
    "memory",
    "error",
    "timeout",
)
_add(
    "raw_thread_bomb",
    """
# Threads made by hand, on stacks of one page: what the kernel keeps for each is not in the program's own memory.
import mmap
if not X86: sys.exit()
libc.pthread_self.restype = ctypes.c_void_p
size, count = 4096, 20_000
stacks = mmap.mmap(-1, size * (count + 1))
base = ctypes.addressof(ctypes.c_char.from_buffer(stacks))
word = ctypes.c_int()
started = 0
for index in range(count):
    stack = ctypes.c_void_p(base + size * (index + 1))
    made = libc.clone(libc.pause, stack, 0x3D0F00, None, ctypes.byref(word), ctypes.c_void_p(libc.pthread_self()), ctypes.byref(word))
    if made == -1: break
    started += 1
    if started == 2000: os.write(1, b"ESCAPED")
os._exit(0)
""",
    "ok",
    "error",
    "memory",
    "timeout",
)
_add("deep_recursion", "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "error", "memory", "timeout")
_add(
    "deep_c_recursion",
    "sys.setrecursionlimit(10**9)\ndef f(x): return sorted([1, 2], key=f)\nf(1)",
    "error",
    "memory",
)
_add("deep_nesting", "compile('(' * 200000 + ')' * 200000, 'x', 'eval')", "error", "memory")
_add("huge_integer", "print(len(str(7 ** (10 ** 9))))", "timeout", "error", "memory")
_add("catastrophic_regex", "import re; re.match('(a+)+$', 'a' * 50 + 'b')", "timeout")
_add(
    "lock_memory",
    "if libc.mlockall(3) == 0: print('ESCAPED')\nx = ctypes.create_string_buffer(1 << 20)\n"
    "if libc.mlock(x, 1 << 20) == 0: print('ESCAPED')",
)
_add("core_dump", "import resource; print('ESCAPED' if resource.getrlimit(resource.RLIMIT_CORE)[1] else '')")

# --- not ending ---------------------------------------------------------------------------------------------

_add(
    "ignores_signals",
    """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try: time.sleep(100)
    except BaseException: pass
""",
    "timeout",
)
_add(
    "blocks_signals",
    """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: pass
""",
    "timeout",
)
_add(
    "swallows_exceptions",
    """
while True:
    try:
        while True: pass
    except BaseException: pass
""",
    "timeout",
)
_add("stops_itself", "import signal; os.kill(os.getpid(), signal.SIGSTOP); time.sleep(100)", "timeout")
_add("hangs_at_exit", "import atexit; atexit.register(time.sleep, 100)", "timeout")
_add(
    "thread_outlives", "import threading; threading.Thread(target=time.sleep, args=(100,)).start()", "timeout"
)
_add("destructor_loops", "class A:\n  def __del__(self):\n    while True: pass\na = A(); del a", "timeout")
_add("exit_at_once", "os._exit(0)", "ok")
_add("exit_with_code", "os._exit(7)", "error")
_add("kills_itself", "attempt('kill', os.kill, os.getpid(), 9); libc.abort()", "error")
_add("segfault", "ctypes.string_at(0)", "error")
_add("stack_smash", "libc.longjmp(0, 1)", "error")

# --- processes ----------------------------------------------------------------------------------------------

_add(
    "orphan",
    """
pid = os.fork()
if pid == 0:
    if os.fork() == 0: time.sleep(300)
    os._exit(0)
print("ESCAPED")
""",
    "error",
)
_add(
    "setsid_daemon",
    """
attempt("setsid", os.setsid)
try: pid = os.fork()
except OSError: sys.exit()
if pid == 0:
    os.setsid(); time.sleep(300)
print("ESCAPED")
""",
)
_add(
    "shell_daemon",
    """
import subprocess
def shell():
    if os.system("sleep 300 &") != 0: raise OSError
attempt("system", shell)
attempt("popen", lambda: os.popen("sleep 300 &").close() and 1 / 0)
attempt("Popen", subprocess.Popen, ["sleep", "300"])
attempt("posix_spawn", os.posix_spawn, "/bin/sh", ["sh", "-c", "sleep 300 &"], {})
""",
)
_add(
    "exec",
    """
for path in ("/bin/sh", "/bin/true", "/usr/bin/env", sys.executable or "/usr/bin/python3"):
    attempt("execv", os.execv, path, [path])
""",
)
_add(
    "memfd_exec",
    """
attempt("memfd", os.memfd_create, "x")
call("execveat", 322, 281, 1, b"", 0, 0, 0x1000)
""",
)
_add(
    "pickle_rce",
    """
import pickle
class Evil:
    def __reduce__(self): return (os.system, (f"touch {GIVEN['folder']}/pickled",))
code = pickle.loads(pickle.dumps(Evil()))
if code == 0: print("ESCAPED")
""",
)
_add(
    "signals_others",
    """
import signal
for pid in [0, -1, -GIVEN["pid"], *OTHERS]:
    attempt(f"kill {pid}", os.kill, pid, 0)
    attempt(f"SIGURG {pid}", os.kill, pid, signal.SIGURG)
    attempt(f"killpg {pid}", os.killpg, abs(pid), 0)
    call("tgkill", 234, 131, pid, pid, 0); call("tkill", 200, 130, pid, 0)
    call("rt_sigqueueinfo", 129, 138, pid, 0, ctypes.create_string_buffer(128))
    call("pidfd_open", 434, 434, pid, 0)
""",
)
_add(
    "signals_by_ownership",
    """
import fcntl
for pid in (GIVEN["pid"], os.getppid(), 1):
    reader, writer = os.pipe()
    attempt("F_SETOWN", fcntl.fcntl, reader, 8, pid)
    attempt("F_SETSIG", fcntl.fcntl, reader, 10, 9)
    attempt("F_SETOWN_EX", fcntl.fcntl, reader, 15, bytes(8))
    attempt("F_NOTIFY", fcntl.fcntl, reader, 1026, 1)
    attempt("F_SETLEASE", fcntl.fcntl, reader, 1024, 0)
""",
)
_add(
    "ptrace",
    """
for pid in OTHERS:
    call("PTRACE_ATTACH", 101, 117, 16, pid, 0, 0); call("PTRACE_SEIZE", 101, 117, 0x4206, pid, 0, 0)
call("PTRACE_TRACEME", 101, 117, 0, 0, 0, 0)
""",
)
_add(
    "process_memory",
    """
class Vector(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
room = ctypes.create_string_buffer(64)
local, remote = Vector(ctypes.addressof(room), 64), Vector(ctypes.addressof(room), 64)
for pid in [os.getpid(), *OTHERS]:
    call("process_vm_readv", 310, 270, pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    call("process_vm_writev", 311, 271, pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    attempt("mem", open, f"/proc/{pid}/mem", "r+b")
attempt("mem", open, "/proc/self/mem", "r+b"); attempt("kcore", open, "/proc/kcore", "rb"); attempt("mem", open, "/dev/mem")
""",
)
_add(
    "limits_of_others",
    """
import resource
room = ctypes.create_string_buffer(16)
for pid in [os.getpid(), *OTHERS]:
    call("prlimit", 302, 261, pid, 9, room, 0); call("prlimit read", 302, 261, pid, 9, 0, room)
    if pid != os.getpid():
        attempt("affinity", os.sched_setaffinity, pid, {0}); attempt("priority", os.setpriority, 0, pid, 19)
attempt("priority of all", os.setpriority, 2, 0, 19); attempt("nice", os.nice, -5)
call("ioprio_set", 251, 30, 1, GIVEN["pid"], 0x6000); call("sched_setscheduler", 144, 119, 0, 1, room)
""",
)
_add(
    "raises_limits",
    """
import resource
for name in dir(resource):
    if name.startswith("RLIMIT_"):
        kind = getattr(resource, name)
        soft, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            attempt(name, resource.setrlimit, kind, (hard + 4096, hard + 4096))
        if name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC") and hard < 0:
            print("ESCAPED", name)
""",
)

# --- the network --------------------------------------------------------------------------------------------

_add(
    "tcp_connect",
    """
import socket
attempt("tcp", socket.create_connection, ("127.0.0.1", GIVEN["tcp"]), 1)
attempt("tcp6", lambda: socket.socket(socket.AF_INET6).connect(("::1", GIVEN["tcp"])))
call("socket", 41, 198, 2, 1, 0)
""",
)
_add("tcp_listen", "import socket; attempt('listen', socket.create_server, ('127.0.0.1', 0))")
_add(
    "udp_send",
    """
import socket
def send(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"leak", ("127.0.0.1", GIVEN["udp"]))
attempt("udp", send)
""",
)
_add(
    "raw_sockets",
    """
for family in (1, 2, 10, 16, 17, 38, 40): # unix, inet, inet6, netlink, packet, alg, vsock
    for kind in (1, 2, 3): call(f"socket {family} {kind}", 41, 198, family, kind, 0)
""",
)
_add(
    "abstract_socket",
    """
import socket
def connect(): socket.socket(socket.AF_UNIX).connect("\\0" + GIVEN["abstract"])
def datagram():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.sendto(b"leak", "\\0" + GIVEN["abstract"] + "-datagram")
def stream():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    left.sendto(b"leak", "\\0" + GIVEN["abstract"] + "-datagram")
attempt("connect", connect); attempt("datagram", datagram); attempt("stream", stream)
""",
)
_add(
    "passes_descriptors",
    """
import socket
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
attempt("sendmsg", socket.send_fds, left, [b"x"], [1])
""",
)
_add("name_lookup", "import socket; attempt('dns', socket.getaddrinfo, 'example.com', 80)")

# --- reading what it should not -----------------------------------------------------------------------------

_add(
    "secret_file",
    """
import mmap
path = GIVEN["canary"]
attempt("open", lambda: open(path).read()); attempt("os.open", os.open, path, os.O_RDONLY)
attempt("write", os.open, path, os.O_WRONLY); attempt("append", open, path, "a"); attempt("path", lambda: os.read(os.open(path, 0o10000000), 1))
attempt("list", os.listdir, GIVEN["folder"])
for prefix in ("/proc/self/root", "/proc/1/root", f"/proc/{GIVEN['pid']}/root", "/proc/self/cwd/..", "/..", "/oldroot", "/newroot"):
    attempt(prefix, lambda: open(prefix + path).read())
if libc.open(path.encode(), 0) != -1: print("ESCAPED")
call("openat2", 437, 437, -100, path.encode(), ctypes.create_string_buffer(24), 24)
call("name_to_handle_at", 303, 264, -100, path.encode(), ctypes.create_string_buffer(256), ctypes.create_string_buffer(8), 0)
call("open_by_handle_at", 304, 265, 1, ctypes.create_string_buffer(256), 0)
""",
)
_add(
    "system_files",
    """
for path in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/hosts", "/root/.ssh", "/home", "/var/log", "/sys",
             "/proc/version", "/proc/self/maps", "/proc/cpuinfo", "/proc/mounts", "/dev/kmsg", "/dev/mem", "/dev/vda", "/dev/tty",
             "/run", "/boot", "/srv", "/opt/secret", "/var/run/docker.sock"):
    attempt(path, os.listdir, path); attempt(path, lambda: open(path).read(1))
""",
)
_add(
    "environment",
    """
if os.environ: print("ESCAPED", dict(os.environ))
pointer = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
index = 0
while pointer and pointer[index]:
    print("ESCAPED", pointer[index]); index += 1
for pid in ("self", *OTHERS): attempt("proc", open, f"/proc/{pid}/environ")
if GIVEN["pid"] == os.getppid(): print("ESCAPED")
""",
)
_add(
    "symlinks",
    """
def through(target):
    link = f"/tmp/link{abs(hash(target))}"
    os.symlink(target, link)
    open(link).read()
attempt("read", through, GIVEN["canary"]); attempt("dots", through, "../../../.." + GIVEN["canary"])
attempt("hard link", os.link, GIVEN["canary"], "/tmp/hard")
attempt("hard link of a library", os.link, os.__file__, "/tmp/hard2")
def write():
    os.symlink(GIVEN["folder"], "/tmp/folder"); open("/tmp/folder/written", "w").write("x")
attempt("write", write)
attempt("rename", os.rename, GIVEN["canary"], "/tmp/stolen"); attempt("rename", os.rename, os.__file__, "/tmp/stolen2")
attempt("over", os.replace, "/tmp", GIVEN["folder"])
""",
)
_add(
    "inherited_descriptors",
    """
import errno
for fd in range(3, 4096):
    try: os.fstat(fd)
    except OSError: continue
    print("ESCAPED", fd)
""",
)
_add(
    "forged_status",
    """
for fd in range(3, 1024):
    for message in (b"X" + bytes(44), b'{"status": "ok"}', b"R{}", b"F" + bytes(8)):
        try: os.write(fd, message)
        except OSError: continue
        print("ESCAPED", fd)
raise SystemExit(3)
""",
    "error",
)
_add(
    "standard_descriptors",
    """
attempt("stdin", lambda: os.write(0, b"x"))
attempt("stdout", lambda: os.read(1, 1)); attempt("stderr", lambda: os.read(2, 1))
if os.isatty(0) or os.isatty(1): print("ESCAPED")
attempt("tty", os.open, "/dev/tty", os.O_RDWR)
import fcntl, termios
attempt("TIOCSTI", fcntl.ioctl, 0, termios.TIOCSTI, b"x"); attempt("FIOASYNC", fcntl.ioctl, 1, 0x5452, bytes(4))
""",
)
_add(
    "opens_descriptors_of_others",
    """
# The pipes of the next program are open in a process that waits for it. /proc has a door to them, past every path rule.
import itertools
near = range(max(1, os.getpid() - 200), os.getpid() + 200)
for pid in sorted({*near, *OTHERS} - {os.getpid()}):
    for name, fd in itertools.product((f"/proc/{pid}/fd", f"/proc/{pid}/task/{pid}/fd"), range(8)):
        for way in (os.O_RDONLY, os.O_WRONLY): attempt(f"open {way}", os.open, f"{name}/{fd}", way | os.O_NONBLOCK)
        attempt("link", os.readlink, f"{name}/{fd}")
    for name in ("exe", "cwd", "root", "ns/user"): attempt(name, os.readlink, f"/proc/{pid}/{name}")
""",
)
_add("closes_descriptors", "os.closerange(0, 1024)\nprint('x' * 100_000)", "error", "ok")
_add("reads_stdin", "print(repr(sys.stdin.read())); input()", "error")
_add(
    "file_locks",
    """
import fcntl, struct
pack = lambda kind: struct.pack("hhqqi4x", kind, 0, 0, 1, 0)
for path in ("/dev/null", os.__file__, os.path.dirname(os.__file__)):
    fd = os.open(path, os.O_RDONLY)
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
        for command in (36, 37, 38): attempt(f"open file lock {command}", fcntl.fcntl, fd, command, pack(kind))
        attempt("question", fcntl.fcntl, fd, fcntl.F_GETLK, pack(kind))
    attempt("flock", fcntl.flock, fd, fcntl.LOCK_SH); attempt("lease", fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    attempt("notify", fcntl.fcntl, fd, fcntl.F_NOTIFY, 1); attempt("hint", fcntl.fcntl, fd, 1036, bytes(8))
for place in range(1000): fcntl.fcntl(0, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 4 * place, 1, 0))
""",
    "ok",
)
_add(
    "clocks_of_others",
    """
room = ctypes.create_string_buffer(64)
attempts = {pid: [~pid << 3 | kind for kind in (0, 1, 2)] for pid in OTHERS}
for pid, clocks in attempts.items():
    for clock in clocks:
        attempt(f"clock of {pid}", time.clock_gettime, clock); attempt(f"resolution {pid}", time.clock_getres, clock)
        call("clock_nanosleep", 230, 115, clock, 0, room, 0); call("timer_create", 222, 107, clock, 0, room)
        attempt(f"thread of {pid}", time.clock_gettime, ~pid << 3 | 6)
call("getpriority", 140, 141, 0, GIVEN["pid"]); call("ioprio_get", 252, 31, 1, GIVEN["pid"])
call("get_robust_list", 274, 100, GIVEN["pid"], room, room); call("sched_getattr", 315, 275, GIVEN["pid"], room, 56, 0)
call("sched_rr_get_interval", 148, 127, GIVEN["pid"], room); call("sched_getaffinity", 204, 123, GIVEN["pid"], 64, room)
call("getpgid", 121, 155, GIVEN["pid"]); call("getsid", 124, 156, GIVEN["pid"])
own = [time.clock_gettime(clock) for clock in (time.CLOCK_PROCESS_CPUTIME_ID, time.CLOCK_THREAD_CPUTIME_ID, ~0 << 3 | 2)]
import threading
print("ESCAPED" if min(own) <= 0 or time.clock_gettime(time.pthread_getcpuclockid(threading.get_ident())) <= 0 else "")
""",
    "ok",
)
_add(
    "counters_of_the_machine",
    """
import mmap, socket
room = ctypes.create_string_buffer(512)
attempt("load and memory", os.getloadavg); call("sysinfo", 99, 179, room)
left, right = socket.socketpair()
attempt("socket cookie", left.getsockopt, socket.SOL_SOCKET, 57, 8)
fd = os.open(os.__file__, os.O_RDONLY)
attempt("cached page", os.preadv, fd, [bytearray(64)], 0, 8)
mapped = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
base = libc.mmap(None, 4096, 1, 1, fd, 0)
call("mincore", 27, 232, ctypes.c_void_p(base), 4096, room); call("cachestat", 451, 451, fd, room, room, 0)
if libc.mmap(None, 1 << 21, 3, 0x40022, -1, 0) != 2**64 - 1 or ctypes.get_errno() != 1: print("ESCAPED huge page")
call("timer_create", 222, 107, 1, 0, room); call("getcpu of nobody", 236, 236, 0, 0, 0)
""",
    "ok",
)
_add(
    "futexes_of_files",
    """
import threading
fd = os.open(os.__file__, os.O_RDONLY)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
class Time(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("n", ctypes.c_long)]
FUTEX = 202 if X86 else 98
for sharing in (1, 2):  # a private mapping of a file that only reads shares its pages too
    base = libc.mmap(None, 4096, 1, sharing, fd, 0)
    word = ctypes.c_uint32.from_address(base).value
    place, soon = ctypes.c_void_p(base), ctypes.byref(Time(0, 200_000_000))
    for operation in (0, 9, 9 | 256, 0 | 256):
        before = time.monotonic()
        libc.syscall(FUTEX, place, operation, ctypes.c_uint32(word), soon, None, ctypes.c_uint32(0xFFFFFFFF))
        if ctypes.get_errno() == 110 or time.monotonic() - before > 0.15: print("ESCAPED", sharing, operation)
    for operation in (3, 4, 5, 6, 7, 8, 11, 12, 13): call(f"futex {operation}", FUTEX, FUTEX, place, operation, 1, 1, place, word)
    for number in (449, 454, 455, 456): call(f"futex call {number}", number, number, place, 1, 2, soon, 1, 0)
done = threading.Event()
thread = threading.Thread(target=done.wait); thread.start(); done.set(); thread.join()
""",
    "ok",
)
_add(
    "interpreter_internals",
    """
import gc
for thing in gc.get_objects():
    text = repr(type(thing))
    if "socket.socket" in text:
        attempt("control socket", lambda: thing.send(b"X" + bytes(44)))
main = sys.modules["__main__"]
if any(hasattr(main, name) for name in ("_Zygote", "_Config", "REQUEST")): print("ESCAPED")
""",
)

# --- changing what it should not ----------------------------------------------------------------------------

_add(
    "writes_outside",
    """
import sysconfig
library = os.path.dirname(os.__file__)
for place in (GIVEN["folder"], library, library + "/__pycache__", "/", "/usr", "/usr/lib", "/dev", "/dev/shm", "/var/tmp", "/etc", "/root",
              "/home", sysconfig.get_paths()["purelib"], *[p for p in sys.path if p]):
    attempt(place, lambda: open(place + "/written-by-program", "w"))
    attempt(place, os.mkdir, place + "/made-by-program"); attempt(place, os.mkfifo, place + "/fifo")
    attempt(place, os.symlink, "x", place + "/link-by-program"); attempt(place, os.mknod, place + "/node", 0o600 | 0o060000, 0x100)
attempt("truncate", os.truncate, GIVEN["canary"], 0); attempt("truncate", os.truncate, os.__file__, 0)
attempt("unlink", os.unlink, GIVEN["canary"]); attempt("unlink", os.unlink, os.__file__); attempt("rmdir", os.rmdir, GIVEN["folder"])
""",
)
_add(
    "empties_files",
    """
path = GIVEN["canary"]
for way in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
    attempt(f"open {way}", os.open, path, way | os.O_TRUNC); attempt("create", os.open, path, way | os.O_TRUNC | os.O_CREAT, 0o666)
attempt("truncate", os.truncate, path, 0); attempt("open", open, path, "w"); attempt("append", open, path, "a")
call("creat", 85, -1, path.encode(), 0o666)
fd = os.open(path, os.O_PATH) if os.path.exists(path) else -1
call("ftruncate", 77, 46, fd, 0); call("fallocate", 285, 47, fd, 3, 0, 1); call("openat2", 437, 437, -100, path.encode(), ctypes.create_string_buffer(24), 24)
""",
)
_add(
    "changes_modes",
    """
def with_open(path, function):
    fd = os.open(path, os.O_RDONLY)
    function(fd)
for path in (GIVEN["canary"], GIVEN["folder"], os.__file__, "/dev/null", "/dev/zero", "/dev/urandom", "/", "/usr", "/dev", "/lib", "/zygote.py",
             sys.executable or "/usr/bin/python3"):
    attempt("chmod " + path, os.chmod, path, 0o777); attempt("utime " + path, os.utime, path, (0, 0))
    attempt("chown " + path, os.chown, path, os.getuid(), os.getgid()); attempt("xattr " + path, os.setxattr, path, "user.x", b"1")
    attempt("fchmod " + path, with_open, path, lambda fd: os.fchmod(fd, 0o777))
    attempt("futime " + path, with_open, path, lambda fd: os.utime(fd, (0, 0)))
    attempt("fxattr " + path, with_open, path, lambda fd: os.setxattr(fd, "user.x", b"1"))
attempt("fchmod 0", os.fchmod, 0, 0o777); attempt("futime 0", os.utime, 0, (0, 0))
call("fchmodat2", 452, 452, -100, GIVEN["canary"].encode(), 0o777, 0)
""",
)
_add(
    "new_namespaces",
    """
for flag in (0x20000, 0x80, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    call(f"unshare {flag:x}", 272, 97, flag)
    call(f"clone {flag:x}", 56, 220, flag | 17, 0, 0, 0, 0)
    call(f"clone thread {flag:x}", 56, 220, 0x3D0F00 | flag, 0, 0, 0, 0)
call("setns", 308, 268, 0, 0); call("mount", 165, 40, b"none", b"/tmp", b"tmpfs", 0, 0)
call("umount", 166, 39, b"/tmp", 2); call("pivot_root", 155, 41, b"/tmp", b"/tmp"); call("chroot", 161, 51, b"/tmp")
call("fsopen", 430, 430, b"tmpfs", 0); call("open_tree", 428, 428, -100, b"/", 1); call("move_mount", 429, 429, -1, b"", -1, b"", 0)
""",
)
_add(
    "privileged_calls",
    """
room = ctypes.create_string_buffer(512)
for name, x86, arm, arguments in (
    ("bpf", 321, 280, (0, room, 128)), ("perf", 298, 241, (room, 0, -1, -1, 0)), ("userfaultfd", 323, 282, (0,)),
    ("io_uring", 425, 425, (4, room)), ("keyctl", 250, 219, (0, -3, 1)), ("add_key", 248, 217, (b"user", b"n", b"v", 1, -4)),
    ("request_key", 249, 218, (b"user", b"n", 0, -4)), ("syslog", 103, 116, (3, room, 512)), ("reboot", 169, 142, (0, 0, 0, 0)),
    ("init_module", 175, 105, (room, 1, b"")), ("kexec", 246, 104, (0, 0, 0, 0)), ("swapon", 167, 224, (b"/tmp/x", 0)),
    ("settimeofday", 164, 170, (room, 0)), ("clock_settime", 227, 112, (0, room)), ("sethostname", 170, 161, (b"x", 1)),
    ("acct", 163, 89, (0,)), ("quotactl", 179, 60, (0, 0, 0, 0)), ("iopl", 172, -1, (3,)), ("ioperm", 173, -1, (0, 1, 1)),
    ("personality", 135, 92, (0x0040000,)), ("setuid", 105, 146, (0,)), ("setgid", 106, 144, (0,)), ("setgroups", 116, 159, (0, room)),
    ("capset", 126, 91, (room, room)), ("seccomp", 317, 277, (1, 0, 0)), ("inotify", 294, 26, (0,)), ("fanotify", 300, 262, (0, 0)),
    ("sync", 162, 81, ()), ("flock", 73, 32, (1, 1)), ("splice", 275, 76, (0, 0, 1, 0, 1, 0)), ("vmsplice", 278, 75, (1, room, 0, 0)),
    ("pidfd_getfd", 438, 438, (0, 0, 0)), ("kcmp", 312, 272, (1, 1, 0, 0, 0)), ("lookup_dcookie", 212, 18, (0, room, 9)),
    ("process_madvise", 440, 440, (0, room, 0, 0, 0)), ("memfd_secret", 447, 447, (0,)), ("vhangup", 153, 58, ()),
    ("landlock", 444, 444, (0, 0, 1)), ("modify_ldt", 154, -1, (0, room, 8)), ("move_pages", 279, 239, (0, 0, 0, 0, 0, 0)),
    ("setsid", 112, 157, ()), ("setpgid", 109, 154, (0, 0)), ("dumpable", 157, 167, (4, 1, 0, 0, 0)), ("pdeathsig", 157, 167, (1, 0, 0, 0, 0)),
):
    call(name, x86, arm, *arguments)
""",
)
_add(
    "other_system_call_tables",
    """
if X86:
    import mmap
    for number in (0x40000000 + 39, 0x40000000 + 57, 0x40000000 + 41):
        if libc.syscall(number, 2, 1, 0) != -1: print("ESCAPED x32")
    # mov eax, 2 (fork in the 32-bit table); int 0x80; ret
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex("b802000000cd80c3"))
    pid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    print("ESCAPED", pid)
else:
    libc.abort()
""",
    "error",
)
_add(
    "shared_memory_left_behind",
    """
for key in (0, 0x5EC2E7):
    if libc.shmget(key, 4096, 0o1666) != -1: print("ESCAPED shm")
    if libc.semget(key, 1, 0o1666) != -1: print("ESCAPED sem")
    if libc.msgget(key, 0o1666) != -1: print("ESCAPED msg")
call("mq_open", 240, 180, b"left-behind", 0o102, 0o666, 0)
from multiprocessing import shared_memory
attempt("posix", shared_memory.SharedMemory, "left-behind", True, 4096)
""",
)
_add(
    "privileges_left",
    """
# Effective, permitted, inheritable, twice 32 bits of each; bit 2 (read and search) is the Landlock engine's exception.
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, sets)
print("ESCAPED" if any(word & ~4 for word in sets) else "", list(sets))
if libc.prctl(39, 0, 0, 0, 0) != 1: print("ESCAPED no_new_privs")
if libc.prctl(21, 0, 0, 0, 0) != 2: print("ESCAPED seccomp")
if 0 in os.getresuid() + os.getresgid(): print("ESCAPED", os.getresuid())
""",
)
