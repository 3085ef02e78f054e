"""Programs cannot influence each other, and Python works as usual for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ctpo.sandbox import Sandbox

ENGINES = ("bubblewrap", "landlock")


@pytest.fixture(scope="module", params=ENGINES)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    from sandbox_helpers import unavailable

    if (reason := unavailable(request.param)) is not None:
        pytest.skip(reason)
    with Sandbox(timeout_s=10, memory_mb=512, workers=1, engine=request.param) as sandbox:
        yield sandbox


def test_nothing_is_left_of_the_program_before(sandbox: Sandbox) -> None:
    leave = (
        "import builtins, os, random, sys\nbuiltins.left = sys.left = random.left = 1\n"
        "os.environ['LEFT'] = '1'\n"
        "random.random = lambda: 4\ntry: open('/tmp/left', 'w').write('x')\nexcept OSError: pass"
    )
    look = (
        "import builtins, os, random, sys\n"
        "print(hasattr(builtins, 'left'), hasattr(sys, 'left'), hasattr(random, 'left'),"
        " 'LEFT' in os.environ,"
        " random.random() == 4, os.path.exists('/tmp/left'))"
    )
    _, result = sandbox.run([leave, look])
    assert result.stdout == "False False False False False False\n", result.stderr


def test_a_program_cannot_find_the_one_before_in_its_memory(sandbox: Sandbox) -> None:
    # Writing to a pipe from where nothing is mapped fails with EFAULT, so all memory can be searched.
    word = "marmalade"
    search = f"""
import ctypes, gc, os
libc = ctypes.CDLL(None)
word = bytes(reversed({word[::-1].encode()!r}))
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
reader, writer = os.pipe()
pages = sorted({{id(thing) >> 22 for thing in gc.get_objects()}} | {{id(word) >> 22}})
found = searched = 0
for page in pages:
    for address in range(page << 22, (page + 1) << 22, 4096):
        if libc.write(writer, address, 4096) == 4096:
            searched += 1
            data = os.read(reader, 4096)
            at = data.find(word)
            while at >= 0:  # the two halves together are nowhere in this program
                found += data[at + 9 : at + 13] == b"-jar"
                at = data.find(word, at + 1)
print(searched > 300, found)
"""
    first = f"print('{word}' + '-jar')  # {word}-jar"
    for _ in range(3):
        assert sandbox.run([first])[0].stdout == f"{word}-jar\n"
    (result,) = sandbox.run([search])
    assert result.stdout == "True 0\n", result.stderr


def test_stdin_is_a_programs_own(sandbox: Sandbox) -> None:
    """Flags belong to an open file, not to a descriptor: of a file opened before the fork, they would be shared."""
    leave = "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND); print(os.get_blocking(0))"
    look = "import fcntl, os; print(os.get_blocking(0), fcntl.fcntl(0, fcntl.F_GETFL) & os.O_APPEND)"
    left, *looks = sandbox.run([leave, look, look])
    assert left.stdout == "False\n", left.stderr
    assert [result.stdout for result in looks] == ["True 0\n"] * 2


def test_concurrent_programs_cannot_meet(sandbox: Sandbox) -> None:
    """A lock on a file that all programs can read could carry a message, so no program can take or see one."""
    program = """
import fcntl, os, struct
fd = os.open(os.__file__, os.O_RDONLY)
lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0)
exclusive = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
outcomes = []
for call, argument in ((fcntl.F_GETLK, lock), (36, lock), (37, lock), (37, exclusive)):
    try: fcntl.fcntl(fd, call, argument); outcomes.append("open")
    except OSError: outcomes.append("closed")
try: fcntl.flock(fd, fcntl.LOCK_EX); outcomes.append("open")
except OSError: outcomes.append("closed")
print(*outcomes)
"""
    (result,) = sandbox.run([program])
    assert result.stdout == "closed closed closed closed closed\n", result.stderr


def test_a_database_in_a_file_works(sandbox: Sandbox) -> None:
    """SQLite locks its file for the process. That succeeds, though nothing is locked (see sandbox_channels.py)."""
    if sandbox.engine.name == "landlock":
        pytest.skip("under Landlock nothing is writable")
    program = (
        "import sqlite3\nfor turn in range(2):\n  with sqlite3.connect('/tmp/numbers.db') as base:\n"
        "    base.execute('create table if not exists t(n)'); base.execute('insert into t values (7)')\n"
        "    print(base.execute('select sum(n) from t').fetchone())"
    )
    (result,) = sandbox.run([program])
    assert result.stdout == "(7,)\n(14,)\n", result.stderr


def test_random_states_differ(sandbox: Sandbox) -> None:
    own = "import random; print(random.random())"
    numpy = "import numpy; print(numpy.random.random())"
    outputs = [result.stdout for result in sandbox.run([own] * 6 + [numpy] * 6)]
    assert len(set(outputs)) == 12


@pytest.mark.parametrize(
    ("program", "stdout"),
    [
        (
            "import asyncio\nasync def m():\n    await asyncio.sleep(0.01)\n    print('slept')\n"
            "asyncio.run(m())",
            "slept\n",
        ),
        (
            "from concurrent.futures import ThreadPoolExecutor as P\nprint(sum(P(4).map(abs, range(-5, 5))))",
            "25\n",
        ),
        ("import threading\nt = threading.Thread(target=print, args=('t',))\nt.start(); t.join()", "t\n"),
        ("import sqlite3; print(sqlite3.connect(':memory:').execute('select 6*7').fetchone()[0])", "42\n"),
        (
            "import hashlib, zlib; print(hashlib.sha256(b'').hexdigest()[:8], zlib.crc32(b'a'))",
            "e3b0c442 3904355907\n",
        ),
        ("import queue, time, datetime, decimal; print(decimal.Decimal('0.1') * 3)", "0.3\n"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(3))", "A(x=3)\n"),
        ("import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)", "A\n"),
        (
            "import signal, time\ndef stop(*_): raise TimeoutError\nsignal.signal(signal.SIGALRM, stop)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.05)\ntry: time.sleep(5)\n"
            "except TimeoutError: print('alarm')",
            "alarm\n",
        ),
        (
            "import unicodedata, locale; print('é', unicodedata.name('é'))",
            "é LATIN SMALL LETTER E WITH ACUTE\n",
        ),
        ("import numpy as np; print(int(np.linalg.det(np.eye(3) * 2).round()))", "8\n"),
        ("import numpy as np; a = np.ones((500, 500)); print((a @ a).sum())", "125000000.0\n"),
        ("__import__('num' + 'py'); print('late')", "late\n"),
    ],
)
def test_ordinary_programs_work(sandbox: Sandbox, program: str, stdout: str) -> None:
    if "num" in program:
        pytest.importorskip("numpy")
    (result,) = sandbox.run([program])
    assert (result.status, result.stdout) == ("ok", stdout), result.stderr


def test_sympy_is_warm(sandbox: Sandbox) -> None:
    pytest.importorskip("sympy")
    program = "from sympy import *; x = symbols('x'); print(solve(x**2 - 5*x + 6, x))"
    sandbox.run([program])
    (result,) = sandbox.run([program])
    assert result.stdout == "[2, 3]\n", result.stderr
    assert result.cpu_s < 0.4, "importing sympy alone takes longer than this"


def test_a_preloaded_module_is_there(sandbox: Sandbox) -> None:
    """matplotlib wants a folder to write to while it is imported."""
    pytest.importorskip("matplotlib")
    program = "import sys; print('matplotlib' in sys.modules); import matplotlib; print(matplotlib.__name__)"
    with Sandbox(
        timeout_s=10, workers=1, engine=sandbox.engine.name, preload=["matplotlib"], memory_mb=512
    ) as preloaded:
        (result,) = preloaded.run([program])
    assert (result.status, result.stdout) == ("ok", "True\nmatplotlib\n"), result.stderr
    assert sandbox.run(["import sys; print('matplotlib' in sys.modules)"])[0].stdout == "False\n"


def test_everything_but_the_scratch_folder_is_mounted_read_only(sandbox: Sandbox) -> None:
    """The tests' user may not own the interpreter. A user's programs run as its owner."""
    if sandbox.engine.name != "bubblewrap":
        pytest.skip("Landlock changes no mount; writes_outside covers it")
    program = (
        "import os, sys\nplaces = ['/', '/usr', '/dev', '/dev/null', '/dev/zero', '/zygote']\n"
        "places += ['/dev/urandom', '/packages/0']\n"
        "places += [os.__file__, *[p for p in sys.path if os.path.exists(p)], '/tmp']\n"
        "print([p for p in places if not os.statvfs(p).f_flag & os.ST_RDONLY])"
    )
    (result,) = sandbox.run([program])
    assert result.stdout == "['/tmp']\n", result.stderr


def test_scratch_folder(sandbox: Sandbox) -> None:
    """bubblewrap gives each program a folder of its own; under Landlock nothing is writable."""
    program = (
        "import os, shutil, tempfile\nwith tempfile.TemporaryDirectory() as d:\n"
        "    open(d + '/a', 'w').write('x'); shutil.copy(d + '/a', d + '/b'); os.chmod(d + '/b', 0o600)\n"
        "    print(sorted(os.listdir(d)), os.getcwd())"
    )
    (result,) = sandbox.run([program])
    if sandbox.engine.name == "bubblewrap":
        assert result.stdout == "['a', 'b'] /tmp\n", result.stderr
    else:
        assert result.status == "error"
        assert "No usable temporary directory" in result.stderr
