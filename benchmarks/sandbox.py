"""CPU time per program and programs per second, against the usual ways to run one: `python benchmarks/sandbox.py`.

It compares this sandbox's two engines; a fresh `python -I`; bubblewrap around a fresh python, as the published recipe
runs it; and a fork of a warm interpreter without any isolation, which is the floor. The ways take turns. The figures
are medians over the rounds. CPU time is the user and system time of everything involved, the supervisor included. It
depends less than the rate on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from ctpo.sandbox import Sandbox, SandboxUnavailable
from ctpo.sandbox.isolation.bubblewrap import find_bubblewrap

PROGRAMS = {
    "print": "print(3+67)",
    "numpy": "import numpy as np\nprint(np.linalg.solve(np.eye(3) * 2, np.ones(3)).sum())",
    "sympy": "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 5*x + 6, x))",
}
EXPECTED = {"print": "70\n", "numpy": "1.5\n", "sympy": "[2, 3]\n"}
Runner = Callable[[list[str]], list[str]]


def _cpu_s() -> float:
    """The CPU seconds of this process and of every child that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


_REPORT = """
import resource, sys
usage = resource.getrusage(resource.RUSAGE_SELF)
sys.stderr.write(f"\\n{usage.ru_utime + usage.ru_stime}")
"""


def _fresh(command: list[str], workers: int) -> tuple[Runner, Callable[[], float]]:
    """A runner with one new process per program, `workers` at a time, and a clock of the CPU seconds they use.

    A program inside bubblewrap reports its own CPU seconds, because bubblewrap does not pass them on.
    """
    reported: list[float] = []
    hidden = len(command) > 2  # this process cannot wait for bubblewrap's child

    def one(program: str) -> str:
        source = program + _REPORT if hidden else program
        done = subprocess.run([*command, "-c", source], capture_output=True, text=True, check=True)
        if hidden:
            reported.append(float(done.stderr.rpartition("\n")[2]))
        return done.stdout

    def run(programs: list[str]) -> list[str]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, programs))

    return run, lambda: _cpu_s() + sum(reported)


def _bubblewrap_command() -> list[str] | None:
    """The command of bubblewrap around a whole python, with the host read-only, no limits and no filter."""
    binary = find_bubblewrap()
    if binary is None:
        return None
    options = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--unshare-all"]
    keep = ["--ro-bind", sys.prefix, sys.prefix] if sys.prefix.startswith("/tmp/") else []
    return [binary, *options, *keep, "--die-with-parent", sys.executable, "-I"]


def _sandbox_cpu_s(sandbox: Sandbox) -> float:
    """The CPU seconds of a sandbox's processes, and of those they have waited for."""
    assert sandbox._pool is not None
    ticks, sessions = 0, sandbox._pool.processes()
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.isdigit() and int(fields[3]) in sessions:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _contestants(stack: ExitStack, workers: int) -> dict[str, tuple[Runner, Callable[[], float]]]:
    """For each way by name: a function that runs a list of programs, and a clock of the CPU seconds it uses."""
    found: dict[str, tuple[Runner, Callable[[], float]]] = {}

    def add(name: str, sandbox: Sandbox) -> None:
        stack.enter_context(sandbox)
        clock = lambda: _cpu_s() + _sandbox_cpu_s(sandbox)  # noqa: E731
        found[name] = (lambda programs: [result.stdout for result in sandbox.run(programs)], clock)

    for engine in ("bubblewrap", "landlock"):
        try:
            add(f"ctpo ({engine})", Sandbox(engine=engine, workers=workers, timeout_s=30))
        except SandboxUnavailable as reason:
            print(f"left out: {reason}", file=sys.stderr)
    add("fork, no isolation", Sandbox(unsafe_no_isolation=True, workers=workers, timeout_s=30))
    found["python -I"] = _fresh([sys.executable, "-I"], workers)
    if (command := _bubblewrap_command()) is not None:
        found["bubblewrap + python"] = _fresh(command, workers)
    return found


def measure(rounds: int, workers: int, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """The median CPU milliseconds per program, programs per second, and milliseconds for a batch of 8 after a pause.

    The slow ways get fewer programs, and 4 batches of 2, so that a round does not take minutes.
    """
    samples: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    with ExitStack() as stack:
        contestants = _contestants(stack, workers)
        for kind, program in PROGRAMS.items():
            table = samples.setdefault(kind, {name: [] for name in contestants})
            for turn in range(rounds + 1):
                for name, (run, clock) in contestants.items():
                    slow = name in ("python -I", "bubblewrap + python")
                    size = count if kind == "print" else count // 5
                    if slow:
                        size = max(2, count // 10 if kind == "print" else 2)
                    small_started = time.perf_counter()
                    run([program] * (2 if slow else 8))
                    small = (time.perf_counter() - small_started) * (4 if slow else 1)
                    cpu, started = clock(), time.perf_counter()
                    outputs = run([program] * size)
                    wall, cpu = time.perf_counter() - started, clock() - cpu
                    if outputs != [EXPECTED[kind]] * size:
                        raise SystemExit(f"{name} gave {outputs[0]!r} for {kind}")
                    if turn > 0:  # the first round is a warm-up
                        table[name].append((1e3 * cpu / size, size / wall, 1e3 * small))
                    time.sleep(0.05)
    return {
        kind: {
            name: dict(
                zip(
                    ("cpu_ms", "per_s", "batch8_ms"),
                    map(statistics.median, zip(*rows, strict=True)),
                    strict=True,
                )
            )
            for name, rows in table.items()
        }
        for kind, table in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="rounds to take the median of (default 7)")
    parser.add_argument("--workers", type=int, default=2, help="programs at a time (default 2)")
    parser.add_argument("--count", type=int, default=200, help="print programs a round (default 200)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # the floor is unsafe on purpose
    load = os.getloadavg()[0]
    results = measure(args.rounds, args.workers, args.count)
    if args.json:
        print(json.dumps({"load_at_start": load, "workers": args.workers, "results": results}, indent=2))
        return
    print(f"{args.workers} workers on {os.cpu_count()} cores; load at the start {load:.1f} (idle: 0)")
    for kind, table in results.items():
        print(f"\n{kind:<22}{'CPU ms':>9}{'per s':>9}{'8 in ms':>9}")
        for name, row in table.items():
            print(f"{name:<22}{row['cpu_ms']:>9.1f}{row['per_s']:>9.0f}{row['batch8_ms']:>9.1f}")


if __name__ == "__main__":
    main()
