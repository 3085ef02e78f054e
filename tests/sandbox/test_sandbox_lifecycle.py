"""Nothing is left behind, a killed process costs only its own program, and callers share the pool."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sandbox_driver import gone, leftovers, sessions
from sandbox_helpers import SOURCE, unavailable

from ctpo.sandbox import Sandbox, SandboxUnavailable
from ctpo.sandbox.pool import SPARES

# It counts its own time, so that it is seen to be busy on a busy machine, too.
BUSY = "import time\nwhile time.process_time() < 0.5: pass\nprint('done')"


def _started(sandbox: Sandbox) -> list[int]:
    assert sandbox._pool is not None
    return sandbox._pool.processes()


def _busiest(started: list[int], within_s: float = 5.0) -> int:
    """The one child in these sessions that has used 80 ms of CPU: the running program."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        parents, used = set(), {}
        for pid, session in sessions().items():
            if session in started:
                with contextlib.suppress(FileNotFoundError):  # it has just ended
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    parents.add(int(fields[1]))
                    used[pid] = int(fields[11]) + int(fields[12])
        busy = [
            pid for pid, ticks in used.items() if ticks >= 8 and pid not in parents and pid not in started
        ]
        if busy:
            return busy[0]
        time.sleep(0.01)
    raise AssertionError("no program became busy")


def test_closing_leaves_nothing(engine: str) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    sandbox = Sandbox(engine=engine, workers=2)
    sandbox.run(["print(1)"] * 8 + ["import hashlib"])
    started = _started(sandbox)
    sandbox.close()
    sandbox.close()
    assert gone(started)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(SandboxUnavailable, match="closed"):
        sandbox.run(["print(1)"])


def test_killed_supervisor_leaves_nothing(engine: str) -> None:
    program = (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    )
    script = (
        "from ctpo.sandbox import Sandbox\n"
        f"sandbox = Sandbox(engine={engine!r}, workers=2, timeout_s=60)\n"
        "print(*sandbox._pool.processes(), flush=True)\n"
        f"sandbox.run([{program!r}] * 3)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(SOURCE)}
    )
    assert supervisor.stdout is not None
    started = [int(pid) for pid in supervisor.stdout.readline().split()]
    _busiest(started)
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert gone(started)


def test_killed_program_is_retried_once_then_lost(engine: str) -> None:
    with Sandbox(engine=engine, workers=1, timeout_s=20) as sandbox:
        for kills, status in ((1, "ok"), (2, "lost")):
            results = []
            runner = threading.Thread(target=lambda out=results: out.extend(sandbox.run([BUSY, "print(42)"])))
            runner.start()
            for _ in range(kills):
                victim = _busiest(_started(sandbox))
                os.kill(victim, signal.SIGKILL)
                while victim in sessions():
                    time.sleep(0.005)
            runner.join()
            assert [result.status for result in results] == [status, "ok"]
        assert leftovers(sandbox) == 0


def test_killed_zygote_costs_only_its_program(engine: str) -> None:
    with Sandbox(engine=engine, workers=2, timeout_s=20) as sandbox:
        results = []
        runner = threading.Thread(target=lambda: results.extend(sandbox.run([BUSY] * 2 + ["print(42)"] * 20)))
        runner.start()
        started = _started(sandbox)
        _busiest(started)
        for pid in started:
            os.kill(pid, signal.SIGKILL)
        runner.join()
        assert [result.stdout for result in results] == ["done\n"] * 2 + ["42\n"] * 20
        assert leftovers(sandbox) == 0


def test_outlives_the_thread_that_made_it(engine: str) -> None:
    """A zygote's parent-death signal follows a thread, which must not be the caller's."""
    made: list[Sandbox] = []
    thread = threading.Thread(target=lambda: made.append(Sandbox(engine=engine, workers=1)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with made[0] as sandbox:
        before = _started(sandbox)
        assert sandbox.run(["print(1)"])[0].ok
        assert _started(sandbox) == before


def test_namespaces_are_its_own() -> None:
    """The zygote shares no namespace with the host, and a child no PID or mount namespace with the zygote."""
    if (reason := unavailable("bubblewrap")) is not None:
        pytest.skip(reason)
    with Sandbox(engine="bubblewrap", workers=1) as sandbox:
        assert sandbox.run(["import os; print(os.getpid(), os.getppid())"])[0].stdout == "1 0\n"
        (outermost,) = _started(sandbox)
        generations = [[outermost]]
        for _ in range(2):
            generations.append([pid for pid in sessions() if _parent(pid) in generations[-1]])
        (zygote,), children = generations[1:]
        assert len(children) == SPARES
        for name in ("user", "pid", "mnt", "net", "ipc", "uts"):
            assert _namespace(zygote, name) != _namespace(os.getpid(), name), name
        for name in ("pid", "mnt"):
            assert len({_namespace(pid, name) for pid in (zygote, *children)}) == 1 + SPARES, name


def _parent(pid: int) -> int:
    """The parent's process id; 0 for a process that has just ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


def _namespace(pid: int, name: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{name}")


def test_spares_are_kept_ready() -> None:
    with Sandbox(workers=1) as sandbox:
        sandbox.run(["print(1)"] * (3 * SPARES))
        deadline = time.monotonic() + 3
        assert sandbox._pool is not None
        (slot,) = sandbox._pool._slots
        while len(slot.zygotes["lean"].spares) != SPARES and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(slot.zygotes["lean"].spares) == SPARES


def test_many_programs_hold_few_descriptors() -> None:
    with Sandbox(workers=2) as sandbox:
        most, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.005):
                most[0] = max(most[0], len(os.listdir("/proc/self/fd")))

        watcher = threading.Thread(target=watch)
        watcher.start()
        before = len(os.listdir("/proc/self/fd"))
        assert all(result.ok for result in sandbox.run(["pass"] * 120))
        stop.set()
        watcher.join()
        assert most[0] <= before + 2 * 3 * (SPARES + 2)


def test_workers_run_side_by_side_and_no_more() -> None:
    """The programs use the clock that all processes share, so a busy machine delays them and does not fail them."""
    program = "import time; print(time.monotonic()); time.sleep(0.8); print(time.monotonic())"
    with Sandbox(workers=2) as sandbox:
        spans = [[float(word) for word in result.stdout.split()] for result in sandbox.run([program] * 4)]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_callers_in_threads_get_their_own_results() -> None:
    with Sandbox(workers=2) as sandbox:
        results: dict[int, list[str]] = {}

        def call(number: int) -> None:
            programs = [f"print({number}, {i})" for i in range(10)]
            results[number] = [result.stdout for result in sandbox.run(programs)]

        callers = [threading.Thread(target=call, args=(number,)) for number in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert results == {number: [f"{number} {i}\n" for i in range(10)] for number in range(5)}


def test_asynchronous_calls_leave_the_event_loop_free() -> None:
    async def main(sandbox: Sandbox) -> tuple[list[list[str]], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.create_task(tick())
        calls = [sandbox.arun([f"import time; time.sleep(0.1); print({i})"]) for i in range(4)]
        answers = await asyncio.gather(*calls)
        ticker.cancel()
        return [[result.stdout for result in answer] for answer in answers], ticks

    with Sandbox(workers=2) as sandbox:
        answers, ticks = asyncio.run(main(sandbox))
    assert answers == [["0\n"], ["1\n"], ["2\n"], ["3\n"]]
    assert ticks >= 5


def test_a_cancelled_call_gives_its_place_up() -> None:
    async def main(sandbox: Sandbox) -> float:
        call = asyncio.create_task(sandbox.arun(["import time; time.sleep(0.2)"] * 50))
        await asyncio.sleep(0.05)
        call.cancel()
        started = time.monotonic()
        assert (await sandbox.arun(["print(1)"]))[0].ok
        return time.monotonic() - started

    with Sandbox(workers=1) as sandbox:
        assert asyncio.run(main(sandbox)) < 2.0


def test_closing_wakes_a_waiting_caller() -> None:
    sandbox = Sandbox(workers=1, timeout_s=30)
    failures: list[Exception] = []

    def call() -> None:
        try:
            sandbox.run(["import time; time.sleep(20)"] * 2)
        except SandboxUnavailable as failure:
            failures.append(failure)

    caller = threading.Thread(target=call)
    caller.start()
    time.sleep(0.2)
    sandbox.close()
    caller.join(5)
    assert not caller.is_alive()
    assert len(failures) == 1
