"""A normal form of expressions: quotients of sums of monomials, with exact rational coefficients.

A monomial is a product of powers of atoms. Atoms are primes, variables, π, e, i, and functions that are left as they
are. So roots of rationals, powers of any size, logarithms of rationals and sines of common angles compare exactly, and
nothing is ever rounded. Numbers above a limit stay powers, so `2^{10^9}` costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from ctpo.tasks.math.syntax import Node

_MOST_BITS = 40_000  # of a number that is written out; 3000! has 30,359
_MOST_TERMS = 120
_MOST_STEPS = 1_500  # products of two terms in one comparison
_LARGEST_FACTOR = 2_000  # tried when a number is factored
_LARGEST_FACTORIAL = 3_000
_ONE = Fraction(1)


class Beyond(ArithmeticError):
    """The expression has no normal form here: it is too large, or undefined, or of an unknown kind."""


class Undefined(Beyond):
    """The expression has no value at all, such as 1/0."""


Atom = tuple[
    str, str
]  # a base, and the monomial in its exponent: 2^{3n} is the atom ("2", "n") to the power 3
Monomial = tuple[tuple[Atom, Fraction], ...]
Sum = dict[Monomial, Fraction]


@dataclass
class Form:
    """`top / bottom`. `opaque` says that an atom stands for a function, so that different forms may still be equal."""

    top: Sum
    bottom: Sum
    opaque: bool = False


def form(node: Node) -> Form:
    """The normal form of an expression.

    Raises:
        Undefined: if it has no value.
        Beyond: if it has no normal form here.
    """
    return _Former().form(node)


def equal(one: Node, other: Node) -> bool | None:
    """Whether two expressions are equal for all values of their variables. None if this cannot be decided here."""
    try:
        former = _Former()
        a, b = former.form(one), former.form(other)
        if former.is_zero(former.minus(a, b)):
            return True
        return None if a.opaque or b.opaque else False
    except Undefined:
        return False
    except Beyond:
        return None


def proportional(one: Node, other: Node, positive: bool = False) -> bool | None:
    """Whether the numerator of one expression is a rational multiple, not 0, of the other's. None if undecided.

    With `positive`, the factor must be positive and the denominators must be constants.
    """
    try:
        former = _Former()
        a, b = former.form(one), former.form(other)
        if positive and (len(a.bottom) != 1 or len(b.bottom) != 1):
            return None
        a_top, b_top = _without_common_powers(a.top), _without_common_powers(b.top)
        if positive and (a_top != a.top or b_top != b.top):
            a_top, b_top = a.top, b.top
        if not a_top or not b_top:
            return False
        opaque = a.opaque or b.opaque
        if a_top.keys() != b_top.keys():
            return None if opaque else False
        ratios = {a_top[key] / b_top[key] for key in a_top}
        if len(ratios) == 1 and (not positive or ratios.pop() > 0):
            return True
        return None if opaque else False
    except Undefined:
        return False
    except Beyond:
        return None


def key(node: Node) -> str | None:
    """A text that equal expressions may share and different expressions never do. None if there is no normal form."""
    try:
        former = _Former()
        value = former.form(node)
        if len(value.bottom) > 1:
            leading = value.bottom[max(value.bottom)]
            value = former.times(value, _rational(1 / leading), both=True)
        return _text(value)
    except Beyond:
        return None


def rational(node: Node) -> Fraction | None:
    """The value of an expression that is a rational number, or None."""
    try:
        return _as_rational(form(node))
    except Beyond:
        return None


class _Former:
    def __init__(self) -> None:
        self.steps = 0

    def form(self, node: Node) -> Form:
        kind = node.kind
        if kind == "number":
            assert isinstance(node.value, Fraction)
            return _rational(node.value)
        if kind == "symbol":
            name = str(node.value)
            if name == "deg":
                return Form({(((_pi), _ONE),): Fraction(1, 180)}, _unit())
            return _atom(name)
        parts = [self.form(part) for part in node.parts]
        if kind == "negative":
            return self.times(parts[0], _rational(Fraction(-1)))
        if kind == "sum":
            total = parts[0]
            for part in parts[1:]:
                total = self.plus(total, part)
            return total
        if kind == "product":
            return self.times(parts[0], parts[1])
        if kind == "quotient":
            return self.times(parts[0], self.reciprocal(parts[1]))
        if kind == "power":
            return self.power(parts[0], parts[1])
        if kind == "factorial":
            return self.factorial(parts[0])
        if kind == "binomial":
            return self.binomial(parts[0], parts[1])
        if kind == "call":
            return self.call(str(node.value), parts)
        raise Beyond(kind)

    def plus(self, a: Form, b: Form) -> Form:
        opaque = a.opaque or b.opaque
        if a.bottom == b.bottom:
            return Form(_added(a.top, b.top), a.bottom, opaque)
        top = _added(self.expand(a.top, b.bottom), self.expand(b.top, a.bottom))
        return Form(top, self.expand(a.bottom, b.bottom), opaque)

    def minus(self, a: Form, b: Form) -> Form:
        return self.plus(a, self.times(b, _rational(Fraction(-1))))

    def times(self, a: Form, b: Form, both: bool = False) -> Form:
        """The product; with `both`, numerator and denominator are multiplied by the numerator of b."""
        bottom = self.expand(a.bottom, b.top if both else b.bottom)
        return self.simplified(Form(self.expand(a.top, b.top), bottom, a.opaque or b.opaque))

    def simplified(self, a: Form) -> Form:
        if len(a.bottom) != 1:
            return a
        (monomial, coefficient) = next(iter(a.bottom.items()))
        if monomial == () and coefficient == 1:
            return a
        inverse = tuple((atom, -exponent) for atom, exponent in monomial)
        return Form(self.expand(a.top, _reduced(inverse, 1 / coefficient)), _unit(), a.opaque)

    def reciprocal(self, a: Form) -> Form:
        if not a.top:
            raise Undefined("division by 0")
        return self.simplified(Form(a.bottom, a.top, a.opaque))

    def is_zero(self, a: Form) -> bool:
        if not a.bottom:
            raise Undefined("division by 0")
        return not a.top

    def expand(self, a: Sum, b: Sum) -> Sum:
        if len(a) == 1 and () in a and a[()] == 1:
            return b
        if len(b) == 1 and () in b and b[()] == 1:
            return a
        self.steps += len(a) * len(b)
        if self.steps > _MOST_STEPS:
            raise Beyond("too many terms")
        total: Sum = {}
        for one, factor in a.items():
            for other, second in b.items():
                _check_bits(factor, second)
                for monomial, value in _reduced(one + other, factor * second).items():
                    total[monomial] = total.get(monomial, Fraction(0)) + value
        total = {monomial: value for monomial, value in total.items() if value}
        if len(total) > _MOST_TERMS:
            raise Beyond("too many terms")
        return total

    def power(self, base: Form, exponent: Form) -> Form:
        value = _as_rational(exponent)
        if value is None:
            return self.symbolic_power(base, exponent)
        if not base.top:
            if value > 0:
                return _rational(Fraction(0))
            raise Undefined("0 to a power that is not positive")
        if value < 0:
            return self.power(self.reciprocal(base), _rational(-value))
        if len(base.top) == 1 and len(base.bottom) == 1:
            monomial, coefficient = next(iter(base.top.items()))
            return self.monomial_power(monomial, coefficient, value, base.opaque)
        if value.denominator != 1:
            return _opaque(f"({_text(base)})", value)
        longest = max(len(base.top), len(base.bottom))
        if value > 12 or math.comb(longest + int(value) - 1, int(value)) > _MOST_TERMS:
            raise Beyond("a high power of a sum")
        total = _rational(_ONE)
        for _ in range(int(value)):
            total = Form(
                self.expand(total.top, base.top), self.expand(total.bottom, base.bottom), base.opaque
            )
        return total

    def monomial_power(
        self, monomial: Monomial, coefficient: Fraction, value: Fraction, opaque: bool
    ) -> Form:
        if value.denominator == 1:
            raised = tuple((atom, exponent * value) for atom, exponent in monomial)
            if _bits(coefficient) * value <= _MOST_BITS:
                return Form(_reduced(raised, coefficient ** int(value)), _unit(), opaque)
            sign = -1 if coefficient < 0 and value % 2 else 1
            return Form(
                _reduced(_factored(abs(coefficient), value) + raised, Fraction(sign)), _unit(), opaque
            )
        variables = tuple((atom, exponent) for atom, exponent in monomial if not _is_positive(atom))
        positive = tuple((atom, exponent * value) for atom, exponent in monomial if _is_positive(atom))
        outside = _factored(abs(coefficient), value) + positive
        if coefficient < 0 and value.denominator % 2 and not variables:
            return Form(_reduced(outside, Fraction(-1 if value.numerator % 2 else 1)), _unit(), opaque)
        if coefficient < 0:
            if value.denominator != 2:
                return _opaque(f"({_text(Form({monomial: coefficient}, _unit()))})", value)
            if variables:
                return _opaque(f"({_text(Form({monomial: coefficient}, _unit()))})", value)
            outside += ((("i", ""), Fraction(value.numerator)),)
        if variables:
            if len(variables) > 1 or variables[0][1] != 1 or variables[0][0] == ("i", ""):
                inside = _opaque(f"({_text(Form({variables: _ONE}, _unit()))})", value)
                return self.times(Form(_reduced(outside, _ONE), _unit(), opaque), inside)
            outside += ((variables[0][0], value),)
        return Form(_reduced(outside, _ONE), _unit(), opaque)

    def symbolic_power(self, base: Form, exponent: Form) -> Form:
        if len(base.top) != 1 or len(base.bottom) != 1 or len(exponent.bottom) != 1:
            return _opaque(f"({_text(base)})^({_text(exponent)})")
        monomial, coefficient = next(iter(base.top.items()))
        plain = exponent.top.items()
        if any(atom == ("i", "") for term, _ in plain for atom, _ in term):
            return _opaque(f"({_text(base)})^({_text(exponent)})")
        variable = coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0][1] == ""
        if coefficient == -1 and not monomial:
            factors: Monomial = ((("-1", ""), _ONE),)
        elif variable and monomial[0][0][0] != "i":
            factors = monomial
        elif coefficient > 0 and all(_is_positive(atom) and not atom[1] for atom, _ in monomial):
            factors = monomial + _factored(coefficient, _ONE)
        else:
            return _opaque(f"({_text(base)})^({_text(exponent)})")
        opaque = base.opaque or exponent.opaque or coefficient < 0
        total = Form(_unit(), _unit(), opaque)
        for term, factor in plain:
            if term == ():
                total = self.times(total, self.power(base, _rational(factor)))
                continue
            inside = _monomial_text(term)
            raised = tuple(((atom[0], inside), number * factor) for atom, number in factors)
            total = self.times(total, Form(_reduced(raised, _ONE), _unit(), opaque))
        return total

    def factorial(self, a: Form) -> Form:
        n = _as_rational(a)
        if n is None:
            return _opaque(f"({_text(a)})!")
        if n.denominator != 1 or n < 0:
            raise Beyond("a factorial of no natural number")
        return _rational(Fraction(math.factorial(int(n)))) if n <= _LARGEST_FACTORIAL else _opaque(f"{n}!")

    def binomial(self, a: Form, b: Form) -> Form:
        n, k = _as_rational(a), _as_rational(b)
        if n is None or k is None:
            return _opaque(f"binomial({_text(a)},{_text(b)})")
        if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
            raise Beyond("a binomial of no natural numbers")
        if n <= _LARGEST_FACTORIAL:
            return _rational(Fraction(math.comb(int(n), int(k))))
        return _opaque(f"binomial({n},{k})")

    def call(self, name: str, parts: list[Form]) -> Form:
        values = [_as_rational(part) for part in parts]
        a, value = parts[0], values[0]
        if name in ("gcd", "lcm", "max", "min"):
            return _of_integers(name, values)
        if name in ("floor", "ceil") and value is not None:
            return _rational(Fraction(math.floor(value) if name == "floor" else math.ceil(value)))
        if name == "abs" and value is not None:
            return _rational(abs(value))
        if name in ("ln", "log", "lg"):
            return self.logarithm(name, a)
        if name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            angle = _turns(a)
            if angle is not None:
                return self.trigonometric(name, angle)
        return _opaque(f"{name}({_text(a)})")

    def logarithm(self, name: str, a: Form) -> Form:
        if not a.top:
            raise Undefined("the logarithm of 0")
        if name == "lg":
            return self.times(
                self.logarithm("ln", a), self.reciprocal(self.logarithm("ln", _rational(Fraction(10))))
            )
        scale: Sum = (
            _unit() if name == "ln" else {((("log", ""), -_ONE),): _ONE}
        )  # the base of a plain log is unknown
        single = next(iter(a.top.items())) if len(a.top) == 1 and len(a.bottom) == 1 else None
        if single is None or single[1] <= 0 or not all(_is_positive(atom) for atom, _ in single[0]):
            return Form(self.expand(_opaque(f"ln({_text(a)})").top, scale), _unit(), True)
        total: Sum = {}
        for (base, inside), exponent in single[0] + _factored(single[1], _ONE):
            if inside:
                return Form(self.expand(_opaque(f"ln({_text(a)})").top, scale), _unit(), True)
            term: Monomial = () if base == "e" else ((("ln " + base, ""), _ONE),)
            total = _added(total, {term: exponent})
        return Form(self.expand(total, scale), _unit(), a.opaque)

    def trigonometric(self, name: str, half_turns: Fraction) -> Form:
        cosine, sine = _cosine(half_turns), _cosine(Fraction(1, 2) - half_turns)
        if name in ("cos", "sin"):
            return cosine if name == "cos" else sine
        if name in ("sec", "csc"):
            return self.reciprocal(cosine if name == "sec" else sine)
        top, bottom = (sine, cosine) if name == "tan" else (cosine, sine)
        return self.times(top, self.reciprocal(bottom))


_pi: Atom = ("pi", "")


def _unit() -> Sum:
    return {(): _ONE}


def _rational(value: Fraction) -> Form:
    return Form({(): value} if value else {}, _unit())


def _atom(name: str) -> Form:
    return Form({(((name, ""), _ONE),): _ONE}, _unit())


def _opaque(name: str, exponent: Fraction = _ONE) -> Form:
    if len(name) > 2_000:
        raise Beyond("a long function")
    return Form({(((name, ""), exponent),): _ONE}, _unit(), True)


def _as_rational(a: Form) -> Fraction | None:
    if not a.bottom:
        raise Undefined("division by 0")
    if len(a.bottom) != 1 or () not in a.bottom:
        return None
    if not a.top:
        return Fraction(0)
    return a.top[()] / a.bottom[()] if len(a.top) == 1 and () in a.top else None


def _added(a: Sum, b: Sum) -> Sum:
    total = dict(a)
    for monomial, value in b.items():
        other = total.get(monomial)
        if other is not None:
            _check_bits(value, other)
        total[monomial] = value if other is None else value + other
    if len(total) > _MOST_TERMS:
        raise Beyond("too many terms")
    return {monomial: value for monomial, value in total.items() if value}


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _check_bits(*values: Fraction) -> None:
    if sum(map(_bits, values)) > 2 * _MOST_BITS:
        raise Beyond("a large number")


def _is_positive(atom: Atom) -> bool:
    """Whether every real power of the atom is positive: of a prime, of π and of e."""
    return atom[0].isdigit() or atom[0] in ("pi", "e")


def _reduced(powers: Monomial, coefficient: Fraction) -> Sum:
    """The product as one monomial: powers of an atom merged, whole powers of small numbers multiplied out."""
    merged: dict[Atom, Fraction] = {}
    for atom, exponent in powers:
        merged[atom] = merged.get(atom, Fraction(0)) + exponent
    for atom, exponent in list(merged.items()):
        base, inside = atom
        if inside:
            continue
        if base == "i":
            if exponent.denominator != 1:
                raise Beyond("a root of i")
            turn = exponent.numerator % 4
            coefficient *= -1 if turn > 1 else 1
            merged[atom] = Fraction(turn % 2)
        elif base.isdigit():
            whole = math.floor(exponent)
            n = int(base)
            if whole and abs(whole) * n.bit_length() <= _MOST_BITS:
                coefficient *= Fraction(n) ** whole
                merged[atom] = exponent - whole
            elif whole and coefficient:
                # A large power takes all factors of its base from the coefficient, so that there is one form.
                top, moved = _divided(coefficient.numerator, n)
                bottom, moved_down = _divided(coefficient.denominator, n)
                coefficient = Fraction(top, bottom)
                merged[atom] = exponent + moved - moved_down
    _check_bits(coefficient)
    kept = tuple(sorted((atom, exponent) for atom, exponent in merged.items() if exponent))
    return {kept: coefficient}


def _divided(value: int, factor: int) -> tuple[int, int]:
    count = 0
    while value % factor == 0:
        value //= factor
        count += 1
    return value, count


def _factored(value: Fraction, exponent: Fraction) -> Monomial:
    """The positive rational to the power `exponent`, as powers of primes and perhaps of two large numbers."""
    powers: list[tuple[Atom, Fraction]] = []
    for n, sign in ((value.numerator, 1), (value.denominator, -1)):
        for prime, count in _factors(n):
            powers.append(((str(prime), ""), exponent * sign * count))
    return tuple(powers)


@cache
def _small_primes() -> tuple[int, ...]:
    sieve = bytearray([1]) * (_LARGEST_FACTOR + 1)
    for n in range(2, int(_LARGEST_FACTOR**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, _LARGEST_FACTOR + 1, n)))
    return tuple(n for n in range(2, _LARGEST_FACTOR + 1) if sieve[n])


def _factors(n: int) -> list[tuple[int, int]]:
    if n.bit_length() > 2_000:
        raise Beyond("a large number to factor")
    found = []
    for prime in _small_primes():
        if prime * prime > n:
            break
        if n % prime == 0:
            n, count = _divided(n, prime)
            found.append((prime, count))
    if n > 1:
        root = math.isqrt(n)
        found.append((root, 2) if root * root == n else (n, 1))
    return found


def _of_integers(name: str, values: list[Fraction | None]) -> Form:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise Beyond(f"{name} of variables")
    if name in ("max", "min"):
        return _rational(max(known) if name == "max" else min(known))
    if any(value.denominator != 1 for value in known):
        raise Beyond(f"{name} of fractions")
    whole = [int(value) for value in known]
    if sum(value.bit_length() for value in whole) > _MOST_BITS:
        raise Beyond("a large number")
    return _rational(Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole)))


def _turns(a: Form) -> Fraction | None:
    """The angle in half turns (the multiple of π) if the cosine of it is known here."""
    if not a.top:
        return Fraction(0)
    if len(a.top) != 1 or a.bottom != _unit():
        return None
    monomial, value = next(iter(a.top.items()))
    return value if monomial == ((_pi, _ONE),) and 12 % value.denominator == 0 else None


def _cosine(half_turns: Fraction) -> Form:
    twelfths = int(half_turns * 12) % 24
    if twelfths > 12:
        twelfths = 24 - twelfths
    sign = -1 if twelfths > 6 else 1
    twelfths = min(twelfths, 12 - twelfths)
    two, three = (("2", ""), Fraction(1, 2)), (("3", ""), Fraction(1, 2))
    half, quarter = Fraction(sign, 2), Fraction(sign, 4)
    table: dict[int, Sum] = {
        0: {(): Fraction(sign)},
        1: {(two, three): quarter, (two,): quarter},
        2: {(three,): half},
        3: {(two,): half},
        4: {(): half},
        5: {(two, three): quarter, (two,): -quarter},
        6: {},
    }
    return Form(table[twelfths], _unit())


def _without_common_powers(a: Sum) -> Sum:
    """The sum divided by the largest monomial that divides each of its terms into whole powers."""
    if not a:
        return a
    lowest: dict[Atom, Fraction] = {}
    for atom in {atom for monomial in a for atom, _ in monomial}:
        least = min(dict(monomial).get(atom, Fraction(0)) for monomial in a)
        if least < 0:
            lowest[atom] = least
    shifted: Sum = {}
    for monomial, value in a.items():
        powers = dict(monomial)
        for atom, least in lowest.items():
            powers[atom] = powers.get(atom, Fraction(0)) - least
        shifted[tuple(sorted((atom, e) for atom, e in powers.items() if e))] = value
    return shifted


def _monomial_text(monomial: Monomial) -> str:
    return " ".join(
        f"{base}^{{{inside}}}^{exponent}" if inside else f"{base}^{exponent}"
        for (base, inside), exponent in monomial
    )


def _text(a: Form) -> str:
    top, bottom = (
        "+".join(f"{_digits(value)} {_monomial_text(monomial)}" for monomial, value in sorted(terms.items()))
        for terms in (a.top, a.bottom)
    )
    top = top or "0"
    return top if bottom == "1 " else f"{top}|{bottom}"


def _digits(value: Fraction) -> str:
    """Hexadecimal for large numbers: decimal digits take quadratic time, and Python limits them."""
    return str(value) if _bits(value) < 2_000 else f"{value.numerator:x}/{value.denominator:x}"
