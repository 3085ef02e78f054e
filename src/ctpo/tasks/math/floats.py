"""Values of expressions in floating point. They can show that two expressions differ, and never that they are equal."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from ctpo.tasks.math.syntax import Node

_DIFFERENT = 1e-4  # relative; rounding errors of sums that nearly cancel stay below it
_POINTS = (0.731, 2.219, 1.437)
_CONSTANTS = {"pi": cmath.pi, "e": cmath.e, "i": 1j, "deg": cmath.pi / 180, "log": 1.0}
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "log": cmath.log, "arcsin": cmath.asin,
    "arccos": cmath.acos, "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "lg": cmath.log10, "abs": abs, "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip


def differ(one: Node, other: Node) -> bool:
    """Whether the expressions certainly differ at some values of their variables. False if this is not clear."""
    names = sorted(one.symbols() | other.symbols())
    for shift in range(3 if names else 1):
        values = {name: _POINTS[(shift + i) % 3] + 0.217 * i + 0.05 * shift for i, name in enumerate(names)}
        a, b = value(one, values), value(other, values)
        if a is None or b is None:
            continue
        size = max(abs(a), abs(b))
        if size > 1e-200 and abs(a - b) > _DIFFERENT * size and abs(a - b) > 1e-9:
            return True
    return False


def real(node: Node) -> float | None:
    """The value of an expression without variables, if it is real."""
    if node.symbols():
        return None
    if node.kind == "infinity":
        return math.inf
    if node.kind == "negative" and node.parts[0].kind == "infinity":
        return -math.inf
    result = value(node, {})
    return result.real if result is not None and abs(result.imag) < 1e-12 * (1 + abs(result)) else None


def value(node: Node, variables: Mapping[str, complex]) -> complex | None:
    """The value of an expression, or None if it has none here."""
    try:
        result = _value(node, variables)
    except (ArithmeticError, ValueError, KeyError, TypeError):
        return None
    return result if cmath.isfinite(result) else None


def _value(node: Node, variables: Mapping[str, complex]) -> complex:
    kind = node.kind
    if kind == "number":
        assert isinstance(node.value, Fraction)
        return complex(float(node.value))
    if kind == "symbol":
        name = str(node.value)
        return _CONSTANTS[name] if name in _CONSTANTS else variables[name]
    parts = [_value(part, variables) for part in node.parts]
    if kind == "negative":
        return -parts[0]
    if kind == "sum":
        return sum(parts)
    if kind == "product":
        return parts[0] * parts[1]
    if kind == "quotient":
        return parts[0] / parts[1]
    if kind == "power":
        return parts[0] ** parts[1]
    if kind == "factorial":
        return complex(math.gamma(parts[0].real + 1)) if abs(parts[0].imag) == 0 else _none()
    if kind == "binomial":
        a, b = parts[0].real, parts[1].real
        return complex(math.gamma(a + 1) / math.gamma(b + 1) / math.gamma(a - b + 1))
    if kind == "call" and len(parts) == 1:
        return complex(_FUNCTIONS[str(node.value)](parts[0]))
    return _none()


def _none() -> complex:
    raise ValueError("no value")
