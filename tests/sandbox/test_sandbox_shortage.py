"""Forks of the host's process and a lack of file descriptors leave the sandbox as it was."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sandbox_driver import gone
from sandbox_helpers import SOURCE

from ctpo.sandbox import Sandbox, SandboxUnavailable
from ctpo.sandbox.limits import check_descriptors
from ctpo.sandbox.worker import DESCRIPTORS

# The second one is a library's: Python's hooks do not run, and the child keeps every descriptor.
FORKS: dict[str, Callable[[], int]] = {"python": os.fork, "library": ctypes.PyDLL(None).fork}


@contextlib.contextmanager
def forked(fork: Callable[[], int]) -> Iterator[int]:
    """A fork of this process that sleeps until the end of the block."""
    pid = fork()
    if pid == 0:
        while True:
            signal.pause()
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def outputs(sandbox: Sandbox) -> list[str]:
    """What programs print: short ones, a long text, much output, and one that is watched while it runs."""
    long = "#" * 300_000 + "\nprint('long')"
    programs = ["print(1)", long, "print('x' * 50_000)", "import time; time.sleep(0.1); print('late')"] * 2
    return [result.stdout[:5] for result in sandbox.run(programs)]


@pytest.mark.parametrize("fork", FORKS)
def test_goes_on_beside_a_fork(engine: str, fork: str) -> None:
    """Spares from before the fork, children from after it, and the end of a zygote and of the sandbox."""
    with Sandbox(engine=engine, workers=1, timeout_s=10) as sandbox, forked(FORKS[fork]) as pid:
        expected = ["1\n", "long\n", "xxxxx", "late\n"] * 2
        started = time.monotonic()
        assert outputs(sandbox) == expected
        assert time.monotonic() - started < 5
        busy = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - busy < 0.1, "a stale descriptor keeps the thread busy"
        assert sandbox._pool is not None
        zygotes = sandbox._pool.processes()
        for zygote in zygotes:
            os.kill(zygote, signal.SIGKILL)
        assert outputs(sandbox) == expected
        if fork == "python":
            kept = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert not [name for name in kept if "eventpoll" in name or "pidfd" in name]
        zygotes += sandbox._pool.processes()
        started = time.monotonic()
        sandbox.close()
        assert time.monotonic() - started < 1.5, "the zygote was not asked to end"
        assert gone(zygotes)


def test_a_forked_process_is_refused() -> None:
    with Sandbox(workers=1) as sandbox:
        pid = os.fork()
        if pid == 0:
            code = 2
            try:
                sandbox.run(["print(1)"])
            except SandboxUnavailable as error:
                code = 0 if "before a fork" in str(error) and "\n" not in str(error) else 1
            finally:
                sandbox.close()
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert sandbox.run(["print(1)"])[0].ok


def test_a_forked_process_may_have_a_sandbox_of_its_own() -> None:
    with Sandbox(workers=1) as sandbox:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with Sandbox(workers=1) as own:
                    code = 0 if own.run(["print(1)"])[0].stdout == "1\n" else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert sandbox.run(["print(1)"])[0].ok


def test_killed_supervisor_leaves_nothing_beside_a_fork(engine: str) -> None:
    """The fork of the supervisor outlives it, and holds the other ends of all sockets and pipes."""
    script = (
        "import ctypes, os, time\nfrom ctpo.sandbox import Sandbox\n"
        f"sandbox = Sandbox(engine={engine!r}, workers=1, timeout_s=60)\n"
        "pid = ctypes.PyDLL(None).fork()\n"
        "if pid == 0: time.sleep(60); os._exit(0)\n"
        "print(pid, *sandbox._pool.processes(), flush=True)\n"
        "sandbox.run(['while True: pass'])"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(SOURCE)}
    )
    assert supervisor.stdout is not None
    fork, *zygotes = map(int, supervisor.stdout.readline().split())
    try:
        supervisor.kill()
        supervisor.wait()
        assert gone(zygotes)
    finally:
        os.kill(fork, signal.SIGKILL)
        supervisor.stdout.close()


_SHORT = """
import os, resource, sys, threading, time
from ctpo.sandbox import Sandbox, SandboxUnavailable
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
def take(leave):
    held = []
    try:
        while True: held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError: pass
    for _ in range(leave): os.close(held.pop())
    return held
def give(held):
    while held: os.close(held.pop())
def attempt(programs):
    try: return "".join(result.stdout for result in sandbox.run(programs))
    except SandboxUnavailable as refusal: return str(refusal)
with Sandbox(engine=sys.argv[1], workers=1) as sandbox:
    time.sleep(0.3)
    held = take(0)
    print(attempt(["print(1, end='')"] * 8))  # the spares' descriptors are enough, one after the other
    give(held)
    for seconds, program in ((0.5, "print(2, end='')"), (None, "print(3)")):
        held = take(1)
        for pid in sandbox._pool.processes(): os.kill(pid, 9)
        for _ in range(50):
            held += take(1)  # also what the killed one had
            time.sleep(0.01)
        if seconds: threading.Timer(seconds, give, [held]).start()
        print(attempt([program] * 8))  # the interpreter is started again when there are descriptors
    give(held)
    print(attempt(["print(4, end='')"] * 8))
"""


def test_a_moment_without_descriptors_is_survived(engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SHORT, engine],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    spares, waited, refused, afterwards = done.stdout.splitlines() or [done.stderr] * 4
    assert (spares, waited, afterwards) == ("1" * 8, "2" * 8, "4" * 8)
    assert "Too many open files" in refused
    assert "ulimit -n" in refused


@pytest.mark.parametrize("limit", [24, 40])
def test_a_low_limit_is_refused_in_one_line(limit: int) -> None:
    script = (
        "import resource\nfrom ctpo.sandbox import Sandbox, SandboxUnavailable\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        "try: Sandbox(workers=1)\nexcept SandboxUnavailable as refusal: print(refusal)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stdout.splitlines()
    assert f"of its {limit} left" in line
    assert "ulimit -n" in line


def test_fewer_workers_where_none_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    used = len(os.listdir("/proc/self/fd"))
    room = 16 + 5 * 3 * DESCRIPTORS
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + room, used + room))
    assert check_descriptors(None, 64) == 5
    assert check_descriptors(5, 5) == 5
    with pytest.raises(SandboxUnavailable, match=r"workers=6.*ulimit -n"):
        check_descriptors(6, 6)


def test_a_fork_from_another_thread(engine: str) -> None:
    """Forks in between of everything that the pool does."""
    stop = threading.Event()
    codes: list[int] = []

    def fork_on() -> None:
        while not stop.wait(0.01):
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            codes.append(os.waitpid(pid, 0)[1])

    with Sandbox(engine=engine, workers=2, timeout_s=20) as sandbox:
        forker = threading.Thread(target=fork_on)
        forker.start()
        results = sandbox.run(["print(1)", "import time; time.sleep(0.03); print(1)"] * 30)
        stop.set()
        forker.join()
    assert {result.stdout for result in results} == {"1\n"}
    assert set(codes) == {7 << 8}


def test_signals_that_the_host_ignores_are_the_programs_again(engine: str) -> None:
    """Ignored signals are inherited. Without SIGCHLD, the zygote would see no child's end."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Sandbox(engine=engine, workers=1, memory_mb=128) as sandbox:
            results = sandbox.run(["print(1)", "raise SystemExit(3)"])
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert [(result.status, result.stdout) for result in results] == [("ok", "1\n"), ("error", "")]


@pytest.mark.parametrize("when", ["before the start", "before a second interpreter"])
def test_a_host_that_has_closed_its_standard_streams(engine: str, when: str) -> None:
    """Files of the sandbox get the numbers 0 to 2 then, which a new process uses for its own streams."""
    program = f"""if True:
        import os
        from ctpo.sandbox import Sandbox
        report = os.dup2(os.dup(1), 50)
        def close():
            for fd in (0, 1, 2): os.close(fd)
            os.open("/dev/null", os.O_RDONLY)
        if {when == "before the start"}: close()
        with Sandbox(engine={engine!r}, workers=1, memory_mb=128, timeout_s=20) as sandbox:
            sandbox.run(["print(0)"])
            if {when != "before the start"}: close()
            results = sandbox.run(["print(1)", "import datetime; print(2)"])
        os.write(report, repr([result.stdout for result in results]).encode())
    """
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert run.stdout == r"['1\n', '2\n']", run.stderr
