"""A program prints in the sandbox what it prints in CPython, and ends with the same success, however it is written.

The oracle is `python -I -c`. It prints the last line of stderr too, which names the error.
"""

# ruff: noqa: E501 - programs are quoted as they run
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ctpo.sandbox import Sandbox, SandboxResult

PROGRAMS = {
    # streams that were replaced, closed, or opened a second time
    "stdout replaced": "import sys, io\nprint('before')\nsys.stdout = io.StringIO()\nprint('hidden')",
    "replaced and written at exit": (
        "import sys, io, atexit\nsys.stdout = io.StringIO()\n"
        "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(42)"
    ),
    "redirected": "import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()): print(1)\nprint(2)",
    "stdout is None": "import sys\nprint(42)\nsys.stdout = None\nprint(43)",
    "stderr is None": "import sys\nprint(42)\nsys.stderr = None\n1/0",
    "stderr replaced": "import sys, io\nprint(42)\nsys.stderr = io.StringIO()\n1/0",
    "stdout closed": "import sys\nprint(1)\nsys.stdout.close()",
    "stdout deleted": "import sys\nprint(1)\ndel sys.stdout",
    "stdout without flush": "import sys\nprint(1)\nclass W:\n    write = sys.stdout.write\nsys.stdout = W()\nprint(2)",
    "flush that fails": (
        "import sys\nprint(1)\nclass W:\n    def write(self, text): pass\n    def flush(self): 1/0\n"
        "sys.stdout = W()"
    ),
    "descriptor closed": "import os\nprint(1)\nos.close(1)",
    "detached and wrapped": (
        "import io, sys\nprint('é')\nsys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='latin-1')\n"
        "print('abc')"
    ),
    "wrapped buffer": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, line_buffering=True)\nprint(1)",
    "reconfigured": "import sys\nsys.stdout.reconfigure(errors='replace', encoding='ascii')\nprint('é')",
    "bytes": "import sys\nsys.stdout.buffer.write(b'a\\n')\nprint('b')\nsys.stdout.buffer.write(b'c\\n')",
    "both originals replaced": "import io, sys\nprint(1)\nsys.stdout = sys.__stdout__ = io.StringIO()",
    "own writer": "w = open(1, 'w', closefd=False)\nw.write('42')",
    "fdopen": "import os\nw = os.fdopen(1, 'w')\nw.write('42\\n')\nprint('first')",
    "fdopen of a duplicate": "import os\nw = os.fdopen(os.dup(1), 'w')\nprint(42, file=w)\nprint('first')",
    "binary writer in a function": "def f():\n    global w\n    w = open(1, 'wb', closefd=False)\n    w.write(b'x')\nf()",
    "writer in a list in a cycle": "w = [open(1, 'w', closefd=False)]\nw.append(w)\nw[0].write('x')\ndel w",
    "writer kept in a module": "import math\nmath.w = open(1, 'w', closefd=False)\nmath.w.write('x')",
    "writer kept in sys": "import sys\nsys.w = open(1, 'w', closefd=False)\nsys.w.write('x')",
    "C's own buffer": "import ctypes\nctypes.CDLL(None).printf(b'from C\\n')\nprint('from Python', flush=True)",
    "csv": "import csv, sys\ncsv.writer(sys.stdout).writerow([1, 2])",
    "logging": "import logging, sys\nlogging.basicConfig(stream=sys.stdout)\nlogging.warning('w')",
    "carriage return": "print('1 %\\r2 %\\r\\n', end='')",
    "stdin": "import sys\nprint(repr(sys.stdin.read()), sys.stdin.isatty(), sys.stdout.isatty())",
    # the end of objects
    "generator's finally": "def g():\n    try: yield 1\n    finally: print('closed')\nx = g(); next(x)",
    "context manager in a generator": (
        "import contextlib\n@contextlib.contextmanager\ndef m():\n    try: yield\n    finally: print('left')\n"
        "c = m(); c.__enter__()"
    ),
    "coroutine never awaited": "async def f(): pass\nc = f()",
    "destructor": "class A:\n    def __del__(self): print('deleted')\na = A()",
    "destructors in order": (
        "class A:\n    def __init__(s, n): s.n = n\n    def __del__(s): print('deleted', s.n)\n"
        "a = A(1); _b = A(2); c = [A(3), A(4)]; A(5)"
    ),
    "destructor without attributes": "class A:\n    __slots__ = ()\n    def __del__(self): print('deleted')\na = A()",
    "destructor that uses globals": (
        "import math\nword = 'w'\nclass A:\n    def __del__(self): print(word, math.pi)\na = A()\ndef f(): return a"
    ),
    "destructor in a cycle": (
        "class A:\n    def __del__(self): print('deleted')\na = A(); a.me = a; b = A(); b.a = a; a.b = b"
    ),
    "destructor that fails": "class A:\n    def __del__(self): 1/0\na = A()\nprint('end')",
    "object kept in a module": "import math\nclass A:\n    def __del__(self): print('deleted')\nmath.a = A()",
    "object kept in builtins": "import builtins\nclass A:\n    def __del__(self): print('deleted')\nbuiltins.a = A()",
    "object kept in sys": "import sys\nclass A:\n    def __del__(self): print('deleted')\nsys.a = A()",
    "object kept in a default": "class A:\n    def __del__(self): print('deleted')\ndef f(a=A()): return f",
    "after an exception": "class A:\n    def __del__(self): print('deleted')\ndef f():\n    a = A()\n    1/0\nf()",
    "weak reference's callback": "import weakref\nclass A: pass\na = A()\nr = weakref.ref(a, lambda r: print('gone'))",
    "finalize": "import weakref\nclass A: pass\na = A(); weakref.finalize(a, print, 'finalized')",
    "odd class attribute": "class A:\n    @property\n    def __class__(self): 1/0\na = A()\nprint(1)",
    "proxy": "import weakref\nclass A: pass\na = A(); p = weakref.proxy(a); q = weakref.proxy(A)\nprint(1)",
    # exit handlers and threads
    "exit handlers": "import atexit\natexit.register(print, 1)\natexit.register(print, 2)\nprint(0)",
    "exit handler that fails": "import atexit\natexit.register(lambda: 1/0)\natexit.register(print, 2)",
    "exit handler that exits": "import atexit, sys\natexit.register(sys.exit, 3)\nprint(1)",
    "thread that outlives": "import threading\nthreading.Timer(0.05, print, ['late']).start()\nprint('early')",
    "thread and exit handler": (
        "import threading, atexit, time\natexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()"
    ),
    "daemon thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nprint(1)",
    "pool left open": (
        "from concurrent.futures import ThreadPoolExecutor\np = ThreadPoolExecutor(2)\n"
        "p.submit(lambda: __import__('time').sleep(0.05)).add_done_callback(lambda _: print('done'))"
    ),
    "exception in a thread": "import threading\nt = threading.Thread(target=lambda: 1/0)\nt.start(); t.join()\nprint('on')",
    # exit codes
    "exit with True": "import sys\nprint(1); sys.exit(True)",
    "exit with False": "import sys\nprint(1); sys.exit(False)",
    "exit with a text": "import sys\nprint(1)\nsys.exit('why')",
    "exit with None": "raise SystemExit(None)",
    "exit with 256": "import sys; sys.exit(256)",
    "exit with -1": "import sys; sys.exit(-1)",
    "exit with a huge number": "import sys; sys.exit(2 ** 70)",
    "exit with a tuple": "import sys; sys.exit((1, 'two'))",
    "exit in a nested call": "def f(): raise SystemExit\ntry: f()\nfinally: print('left')",
    "exit()": "print(1)\nexit()\nprint(2)",
    "quit(3)": "print(1)\nquit(3)",
    "quit('text')": "quit('text')",
    "the names of site": "print(exit, quit, callable(copyright), callable(credits), callable(license), help)",
    "os._exit": "import os\nprint('lost')\nos._exit(0)",
    "exit in a thread": "import threading, sys\nt = threading.Thread(target=sys.exit, args=(3,))\nt.start(); t.join()\nprint(1)",
    # errors
    "error after output": "print('before')\nraise ValueError('wrong')",
    "error's notes": "e = ValueError('a')\ne.add_note('note')\nraise e",
    "group": "raise ExceptionGroup('g', [ValueError(1), KeyError(2)])",
    "own excepthook": "import sys\nsys.excepthook = lambda kind, error, trace: print('hook', kind.__name__)\nprint(1)\n1/0",
    "excepthook that fails": "import sys\ndef hook(*_): raise KeyError('hook')\nsys.excepthook = hook\n1/0",
    "excepthook that exits": "import sys\nsys.excepthook = lambda *_: sys.exit(0)\n1/0",
    "original excepthook": "import sys\nsys.excepthook = lambda *a: (print('mine'), sys.__excepthook__(*a))\n1/0",
    "error that cannot be printed": "class E(Exception):\n    def __str__(self): 1/0\nraise E",
    "recursion": "def f(n): return f(n + 1)\nf(0)",
    "syntax": "print(1)\nx = = 2",
    "surrogate": "print('a')\nprint('\\ud800')",
    "warning": "import warnings\nwarnings.warn('careful', DeprecationWarning)\nprint(1)",
    # what a program sees of itself
    "names of __main__": "print(__name__, __doc__, __package__, __spec__, __builtins__.len([1]), __annotations__)",
    "annotations": "x: int = 3\nprint(__annotations__)",
    "arguments": "import sys\nprint(sys.argv)",
    "pickle of an own class": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__module__)",
}  # fmt: skip


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, tuple[subprocess.CompletedProcess[str], SandboxResult]]]:
    """CPython's result and the sandbox's, of every program."""

    def plain(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-X", "utf8", "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    with Sandbox(timeout_s=30, memory_mb=256) as sandbox, ThreadPoolExecutor(2) as pool:
        expected = pool.map(plain, PROGRAMS.values())
        yield dict(
            zip(PROGRAMS, zip(expected, sandbox.run(list(PROGRAMS.values())), strict=True), strict=True)
        )


@pytest.mark.parametrize("name", PROGRAMS)
def test_prints_what_cpython_prints(
    name: str, results: dict[str, tuple[subprocess.CompletedProcess[str], SandboxResult]]
) -> None:
    expected, result = results[name]
    assert (result.stdout, result.ok) == (expected.stdout, expected.returncode == 0), result.stderr
    assert _last_line(result.stderr) == _last_line(expected.stderr)


def _last_line(text: str) -> str:
    lines = text.splitlines() or [""]
    return lines[-1].replace("<string>", "<program>")
