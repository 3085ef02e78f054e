"""The results: their order, statuses, output and tracebacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ctpo.sandbox import Sandbox
from ctpo.sandbox.jobs import judge
from ctpo.sandbox.worker import Child, Exit


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(timeout_s=2, memory_mb=256, output_kb=8) as sandbox:
        yield sandbox


def test_results_come_in_the_order_of_the_programs(sandbox: Sandbox) -> None:
    # The first ones end last.
    programs = [f"import time; time.sleep({0.05 if i < 3 else 0}); print({i})" for i in range(30)]
    assert [result.stdout for result in sandbox.run(programs)] == [f"{i}\n" for i in range(30)]


@pytest.mark.parametrize(
    ("program", "status", "stdout"),
    [
        ("print(3+67)", "ok", "70\n"),
        ("", "ok", ""),
        ("import sys; sys.exit()", "ok", ""),
        ("import sys; print('a'); sys.exit(3)", "error", "a\n"),
        ("import sys; sys.exit(97)", "error", ""),
        ("raise SystemExit('why')", "error", ""),
        ("1/0", "error", ""),
        ("def f(:", "error", ""),
        ("print(input())", "error", ""),
        ("print('before', flush=True)\nwhile True: pass", "timeout", "before\n"),
        ("x = bytearray(400 << 20)", "memory", ""),
        ("try: x = bytearray(400 << 20)\nexcept MemoryError: print('coped')", "ok", "coped\n"),
        ("import os; os.write(1, bytes([65, 255, 66]))", "ok", "A�B"),
        ("print('\\0')", "ok", "\0\n"),
        ("\0", "error", ""),
        ("print('\ud800')", "error", ""),
        ("# " + "x" * 300_000 + "\nprint(1)", "ok", "1\n"),
        ("import atexit; atexit.register(print, 'bye')", "ok", "bye\n"),
        ("if __name__ == '__main__': print('main')", "ok", "main\n"),
        ("import threading; threading.Timer(0.05, print, ['late']).start()", "ok", "late\n"),
    ],
)
def test_status_and_output(sandbox: Sandbox, program: str, status: str, stdout: str) -> None:
    (result,) = sandbox.run([program])
    assert (result.status, result.stdout) == (status, stdout), result.stderr


def test_output_is_cut_at_the_limit(sandbox: Sandbox) -> None:
    fits, over, errors = sandbox.run(
        ["print('x' * 8191)", "print('x' * 8192)", "import sys; sys.stderr.write('e' * 9000)"]
    )
    assert (fits.status, len(fits.stdout)) == ("ok", 8192)
    assert (over.status, over.stdout) == ("output_limit", "x" * 8192)
    assert (errors.status, errors.stderr) == ("output_limit", "e" * 8192)


def test_traceback_shows_the_programs_own_frames_and_lines(sandbox: Sandbox) -> None:
    program = "import json\ndef parse(text):\n    return json.loads(text)\nparse('{')"
    (result,) = sandbox.run([program])
    lines = result.stderr.splitlines()
    assert [line.strip() for line in lines if "File" in line] == [
        'File "<program>", line 4, in <module>',
        'File "<program>", line 3, in parse',
    ]
    assert "    return json.loads(text)" in result.stderr
    assert lines[-1].startswith("json.decoder.JSONDecodeError: ")


def test_traceback_is_trimmed_in_the_exceptions_behind(sandbox: Sandbox) -> None:
    program = "import json\ntry: json.loads('{')\nexcept ValueError as error: raise KeyError(1) from error"
    (result,) = sandbox.run([program])
    assert result.stderr.count("File ") == result.stderr.count('File "<program>"') == 2
    assert "direct cause" in result.stderr


def test_traceback_of_a_thread_is_trimmed(sandbox: Sandbox) -> None:
    program = "import threading\ndef work(): 1/0\nt = threading.Thread(target=work)\nt.start(); t.join()"
    (result,) = sandbox.run([program])
    assert result.status == "ok", "as in an interpreter, a thread's exception is not the program's"
    assert result.stderr.count("File ") == result.stderr.count('File "<program>", line 2, in work') == 1
    assert "Exception in thread" in result.stderr


def test_fatal_signal_is_named(sandbox: Sandbox) -> None:
    (result,) = sandbox.run(["import ctypes; ctypes.string_at(0)"])
    assert result.status == "error"
    assert "SIGSEGV" in result.stderr


def test_wall_clock_and_limits_of_one_call(sandbox: Sandbox) -> None:
    slept, late = sandbox.run(["import time; time.sleep(0.2)", "import time; time.sleep(9)"], timeout_s=0.4)
    assert slept.status == "ok"
    assert 0.2 <= slept.wall_s < 0.4
    assert late.status == "timeout"
    assert 0.4 <= late.wall_s < 1.5
    (small,) = sandbox.run(["x = bytearray(64 << 20)"], memory_mb=32)
    assert small.status == "memory"


def test_threads_share_one_cores_time(sandbox: Sandbox) -> None:
    (result,) = sandbox.run(
        ["import resource; print(resource.getrlimit(resource.RLIMIT_CPU))"], timeout_s=1.5
    )
    assert result.stdout == "(3, 3)\n"


@pytest.mark.parametrize(
    ("wait_status", "cpu_s", "status"),
    [(9, 3.01, "timeout"), (24, 3.0, "timeout"), (9, 2.5, "lost"), (24, 0.1, "error"), (11, 3.1, "error")],
)
def test_cpu_limit_is_a_timeout(wait_status: int, cpu_s: float, status: str) -> None:
    """A program that the kernel kills for its CPU time does not count as killed from outside."""
    child = Child(1, -1, -1, -1, cpu_limit_s=3)
    assert judge(child, Exit(1, wait_status, cpu_s), 2.0, False, 100).status == status


def test_a_program_beyond_all_bounds_fails_alone(sandbox: Sandbox) -> None:
    huge, fine = sandbox.run(["#" * (2 << 20), "print(1)"])
    assert (huge.status, fine.status) == ("error", "ok")
    assert "1048576" in huge.stderr


def test_nothing_to_run(sandbox: Sandbox) -> None:
    assert sandbox.run([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"timeout_s": "3"}, "timeout_s='3'"),
        ({"memory_mb": 1}, "memory_mb=1"),
        ({"memory_mb": 512.5}, "memory_mb=512.5"),
        ({"workers": 0}, "workers=0"),
        ({"output_kb": 0}, "output_kb=0"),
        ({"engine": "docker"}, "engine='docker'"),
        ({"workers": 10**6}, "workers=1000000"),
        ({"memory_mb": 10**9}, "memory_mb=1000000000"),
    ],
)
def test_bad_limits_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sandbox(**arguments)  # type: ignore[arg-type]


def test_bad_programs_are_named(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match=r"use \[program\]"):
        sandbox.run("print(1)")
    with pytest.raises(ValueError, match=r"programs\[1\] is a int"):
        sandbox.run(["print(1)", 2])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="memory_mb=512 is more than the sandbox's 256"):
        sandbox.run(["print(1)"], memory_mb=512)
