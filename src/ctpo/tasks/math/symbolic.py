"""Comparing answers with computer algebra. It can take long and much memory, so it runs in a process of its own.

It follows the rules of `comparison`, and differs from `exact` in how it decides whether two expressions are equal:
sympy has to prove that their difference is 0. No verdict rests on rounded numbers, except that two answers differ.
Sums, products, integrals and limits are read by math-verify.
"""

from __future__ import annotations

import functools
import itertools
import re
from fractions import Fraction
from typing import Any, Literal

import sympy
from math_verify import LatexExtractionConfig, parse

from ctpo.tasks.math import floats, forms
from ctpo.tasks.math.comparison import Comparison
from ctpo.tasks.math.normal import clean
from ctpo.tasks.math.syntax import OPERATOR, Node, Unreadable, read_expression

_DIGITS = 40
_MOST_BITS = 40_000
_POINTS = (("7/5", "13/9", "11/3", "17/12"), ("-3/7", "5/8", "-9/4", "8/7"), ("3", "5", "2", "7"))
_KNOWN = re.compile(
    r"(?:[\dA-Za-z\s+*^_{}()=!-]|\.(?=\d)|\\(?:sum|prod|int|lim|infty|to|frac|sqrt|pi|sin|cos|tan|ln|exp|cdot|times)"
    r"(?![A-Za-z]))*"
)
# Numbers that math-verify would multiply, add or drop, and words.
_DOUBTFUL = re.compile(
    r"[\dA-Za-z)}]\s+\d|[A-Za-z)]\d|[A-Za-z]{3}(?<!\\sum)(?<!\\int)(?<!\\lim)|(?<![_{\w]\w)=(?!\d)"
)


def compare(reference: str, given: str) -> Literal["right", "wrong", "unparsable"]:
    """The verdict on the given answer. It is "unparsable" if equality can be neither proved nor refuted.

    Raises:
        Exception: of any kind, on odd text.
    """
    same = Comparison(_equal, _equal_formulas).texts(clean(reference), clean(given))
    return "unparsable" if same is None else "right" if same else "wrong"


def _equal(one: Node, other: Node) -> bool | None:
    same = forms.equal(one, other)
    if same is not None:
        return same
    if floats.differ(one, other):
        return False
    try:
        return _is_zero(_expression(one) - _expression(other))
    except Unreadable:
        return None


def _equal_formulas(reference: str, given: str) -> bool | None:
    """Whether two formulas with sums, products, integrals or limits are equal."""
    if not OPERATOR.search(reference + given):
        return None
    try:
        return _is_zero(_formula(reference) - _formula(given))
    except Unreadable:
        return None


def _is_zero(difference: Any) -> bool | None:
    """Whether an expression of sympy is 0 for all values of its variables; None if that is unknown."""
    if difference.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    names = sorted(difference.free_symbols, key=str)
    if len(names) > 8:
        return None
    for point in _POINTS if names else _POINTS[:1]:
        values = dict(zip(names, map(sympy.Rational, itertools.cycle(point)), strict=False))
        value = difference.subs(values).evalf(_DIGITS)
        if value.is_number and value.is_finite and abs(value) > sympy.Float(f"1e-{_DIGITS // 2}"):
            return False
    for simplified in (sympy.expand, sympy.simplify, _denested, _without_functions):
        if simplified(difference) == 0:
            return True
    return None if names else difference.equals(0)


def _denested(expression: Any) -> Any:
    return sympy.simplify(sympy.expand(sympy.sqrtdenest(expression)))


def _without_functions(expression: Any) -> Any:
    return sympy.simplify(sympy.expand_func(expression.rewrite(sympy.gamma)))


def _expression(node: Node) -> Any:
    """The expression of sympy.

    Raises:
        Unreadable: if it is too large, or if there is none.
    """
    kind = node.kind
    if kind == "number":
        assert isinstance(node.value, Fraction)
        return sympy.Rational(node.value.numerator, node.value.denominator)
    if kind == "symbol":
        return _symbol(str(node.value))
    parts = [_expression(part) for part in node.parts]
    if kind == "negative":
        return -parts[0]
    if kind == "sum":
        return sympy.Add(*parts)
    if kind == "product":
        return parts[0] * parts[1]
    if kind == "quotient":
        if parts[1] == 0:
            raise Unreadable("division by 0")
        return parts[0] / parts[1]
    if kind == "power":
        return _power(*parts)
    if kind == "factorial":
        return sympy.factorial(_small(parts[0]))
    if kind == "binomial":
        return sympy.binomial(_small(parts[0]), _small(parts[1]))
    if kind == "call" and len(parts) == 1:
        return _call(str(node.value), parts[0])
    raise Unreadable(f"{kind} has no counterpart")


@functools.cache
def _symbol(name: str) -> Any:
    constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "deg": sympy.pi / 180}
    return constants[name] if name in constants else sympy.Symbol(name, real=True)


def _power(base: Any, exponent: Any) -> Any:
    if base.is_Rational and exponent.is_Rational:
        bits = int(base.p).bit_length() + int(base.q).bit_length()
        if base == 0 and exponent <= 0:
            raise Unreadable("0 to a power that is not positive")
        if bits * abs(exponent) > _MOST_BITS:
            raise Unreadable("a large power")
    elif exponent.is_number and abs(exponent.evalf(15)) > 1_000:
        raise Unreadable("a large power")
    return base**exponent


def _small(value: Any) -> Any:
    if value.is_number and abs(value.evalf(15)) > 3_000:
        raise Unreadable("a large factorial")
    return value


def _call(name: str, argument: Any) -> Any:
    if name in ("log", "lg"):
        base = sympy.Integer(10) if name == "lg" else sympy.Symbol("base", positive=True)
        return sympy.log(argument) / sympy.log(base)
    functions = {
        "ln": "log",
        "arcsin": "asin",
        "arccos": "acos",
        "arctan": "atan",
        "abs": "Abs",
        "ceil": "ceiling",
    }
    function = functions.get(name, name)
    if function not in "log sin cos tan cot sec csc asin acos atan sinh cosh tanh Abs floor ceiling".split():
        raise Unreadable(f"{name} has no counterpart")
    return getattr(sympy, function)(argument)


def _formula(text: str) -> Any:
    """What math-verify reads, worked out. All of it has to be of the few kinds that math-verify is known to read right.

    Raises:
        Unreadable: if it is none of these.
    """
    if not OPERATOR.search(text):
        return _expression(read_expression(text))
    if not _KNOWN.fullmatch(text) or _DOUBTFUL.search(text):
        raise Unreadable("a formula that may be misread")
    config = [LatexExtractionConfig()]
    found = parse(f"\\boxed{{{text}}}", config, fallback_mode="no_fallback", parsing_timeout=None)
    if len(found) != 1 or not isinstance(found[0], sympy.Expr):
        raise Unreadable("no formula")
    formula = found[0].xreplace({symbol: _symbol(symbol.name) for symbol in found[0].free_symbols})
    if any(len(limits) != 3 for integral in formula.atoms(sympy.Integral) for limits in integral.limits):
        raise Unreadable("an integral without limits")
    worked_out = formula.doit()
    if worked_out.has(sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Piecewise):
        raise Unreadable("a formula that cannot be worked out")
    return worked_out
