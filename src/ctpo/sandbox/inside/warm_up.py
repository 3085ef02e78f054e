"""Imports the modules that programs use, and calls them: much of sympy is built on the first call, not on import."""

from __future__ import annotations

import site

# Left out are hashlib, tempfile, shutil and asyncio. They map libraries (OpenSSL, lzma) that slow down every fork.
_LEAN = """
abc atexit bisect collections collections.abc contextlib enum functools heapq io itertools json keyword linecache math
operator random re string struct threading time traceback types warnings weakref
"""
_USUAL = """
array ast cmath copy dataclasses datetime decimal fractions inspect numbers queue statistics textwrap typing
unicodedata
"""
_FULL = (
    "asyncio base64 bz2 concurrent.futures csv hashlib logging lzma pathlib pprint shutil tempfile uuid zlib"
)

_WARM_LEAN = """
import collections, json, math, random, re
json.loads(json.dumps({"a": [1, 2.5, None]}))
re.sub(r"(\\d+)", r"<\\1>", "a1b22"); random.sample(range(9), 3); math.comb(9, 3)
collections.Counter("aab").most_common(1); print(f"{3 + 67:>5} {2 / 3:.4f}", end="")
"""

_WARM_USUAL = """
import datetime, decimal, fractions, statistics
statistics.mean([1, 2, 3])
str(fractions.Fraction(3, 4) + 1); str(decimal.Decimal("1.1") ** 3); datetime.date(2020, 1, 1).isoformat()
"""

_WARM_NUMPY = """
import numpy as np
a = np.arange(16.0).reshape(4, 4) + np.eye(4) * 9
np.linalg.solve(a, a[0]); np.linalg.eigvals(a); np.linalg.inv(a); np.linalg.det(a); (a @ a).sum(axis=0)
np.random.rand(3); np.random.default_rng(0).normal(size=3)
str(a); np.sort(a, axis=None); np.mean(a); np.fft.fft(a[0])
"""

_WARM_SYMPY = """
from sympy import *
x, y = symbols("x y"); n = symbols("n", integer=True, positive=True)
solve(x**2 - 5*x + 6, x); solve([x + y - 3, x - y - 1], [x, y]); solveset(x**2 - 1, x); Eq(x, 1)
simplify(sin(x)**2 + cos(x)**2); factor(x**4 - 1); expand((x + 1)**5); diff(sin(x)*exp(x), x)
integrate(x*exp(x), x); integrate(1/(1 + x**2), (x, 0, 1)); limit(sin(x)/x, x, 0); series(exp(x), x, 0, 4)
Matrix([[1, 2], [3, 4]]).inv(); Matrix([[2, 1], [1, 2]]).eigenvals(); summation(n, (n, 1, 10))
Rational(3, 4) + Rational(1, 3); N(pi, 30); sqrt(8); str(sqrt(2)*x); latex(x**2/2); nsimplify(0.5)
factorint(360); isprime(97); gcd(12, 18); binomial(10, 3); parse_expr("x+1")
"""


def warm_up(preload: str, modules: list[str]) -> list[str]:
    """Import and use what programs use. Returns the names of the third-party packages that could be imported."""
    # The names that an interpreter gives a program unless it is started with -S: exit, quit, copyright, help and so on.
    for define in (site.setquit, site.setcopyright, site.sethelper):
        define()
    packages = []
    for name in _LEAN.split() if preload == "lean" else (_LEAN + _USUAL).split():
        try:
            __import__(name)
        except ImportError:
            continue
    exercises = [("", _WARM_LEAN)]
    if preload != "lean":
        exercises.append(("", _WARM_USUAL))
    if preload == "full":
        for name in _FULL.split():
            __import__(name)
        exercises += [("numpy", _WARM_NUMPY), ("sympy", _WARM_SYMPY), *((name, "") for name in modules)]
    for package, text in exercises:
        try:
            if package:
                __import__(package)
                packages.append(package)
            exec(compile(text, "<warm-up>", "exec"), {"__name__": "__warm_up__"})
        except Exception:
            continue  # without the package here, programs are slower but not wrong
    return packages
