"""The equality of answers, against graded pairs, exact fractions and integers, and expressions made to cost much."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from answer_pairs import DIFFERENT, SAME, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from ctpo.tasks.math import exact, symbolic

SMALL = st.integers(-60, 60)
POSITIVE = st.integers(1, 60)


def verdict(reference: str, answer: str) -> str:
    """As the judge gives it, with computer algebra in this process."""
    return exact.compare(reference, answer) or symbolic.compare(reference, answer)


KINDS = sorted({kind for kind, _, _ in rows(SAME)})


@pytest.mark.parametrize("kind", KINDS)
def test_graded_pairs(kind: str) -> None:
    graded = [(row, "right") for row in rows(SAME)] + [(row, "other") for row in rows(DIFFERENT)]
    wrong = []
    for (of, reference, answer), grade in graded:
        if of == kind and (verdict(reference, answer) == "right") != (grade == "right"):
            wrong.append((reference, answer))
    assert not wrong


def test_equal_keys_mean_equal_answers() -> None:
    keys = [(exact.canonical(reference), exact.canonical(answer)) for _, reference, answer in rows(DIFFERENT)]
    assert not [pair for pair in keys if pair[0] == pair[1]]
    same = [(exact.canonical(reference), exact.canonical(answer)) for _, reference, answer in rows(SAME)]
    assert (
        sum(one == other for one, other in same) > len(same) / 3
    )  # a key of the text alone would be useless


def forms_of(value: Fraction) -> list[str]:
    """Ways to write a rational number, each of them exact."""
    top, bottom = value.numerator, value.denominator
    sign = "-" if value < 0 else ""
    whole, rest = divmod(abs(top), bottom)
    written = [
        f"{top}/{bottom}",
        rf"\frac{{{top}}}{{{bottom}}}",
        rf"{sign}\dfrac{{{abs(top)}}}{{{bottom}}}",
        rf"\frac{{{3 * top}}}{{{3 * bottom}}}",
        rf"\frac{{{-top}}}{{{-bottom}}}",
        f"x = {top}/{bottom}",
        rf"{top} \div {bottom}",
        rf"{top} \cdot {bottom}^{{-1}}",
        f"{top}/{bottom} cm",
    ]
    if rest and whole:
        written += [rf"{sign}{whole}\frac{{{rest}}}{{{bottom}}}", f"{sign}{whole} {rest}/{bottom}"]
    if 10**9 % bottom == 0:
        digits = f"{abs(top) * 10**9 // bottom:010d}"
        written.append(f"{sign}{digits[:-9]}.{digits[-9:]}")
    return written


@given(SMALL, POSITIVE, SMALL, POSITIVE, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_rationals_are_equal_iff_the_fractions_are(
    a: int, b: int, c: int, d: int, rng: random.Random
) -> None:
    one, other = Fraction(a, b), Fraction(c, d)
    for value in (one, other):
        reference, answer = rng.choice(forms_of(one)), rng.choice(forms_of(value))
        assert (exact.compare(reference, answer) == "right") == (value == one), (reference, answer)


@given(SMALL, POSITIVE, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_rounded_decimal_is_not_the_fraction(a: int, b: int, digits: int) -> None:
    value = Fraction(a, b)
    rounded = f"{a / b:.{digits}f}"
    assert (exact.compare(f"{a}/{b}", rounded) == "right") == (Fraction(rounded) == value)


@given(
    st.integers(2, 40),
    st.integers(1, 12),
    st.integers(2, 40),
    st.integers(1, 12),
    st.sampled_from((1, 10**6, 10**30)),
)
@settings(max_examples=60, deadline=None)
def test_powers_of_any_size(a: int, m: int, b: int, n: int, scale: int) -> None:
    assert exact.compare(f"{a}^{{{m * scale}}}", f"{b}^{{{n * scale}}}") == (
        "right" if a**m == b**n else "wrong"
    )


@given(SMALL, st.integers(1, 200), SMALL, st.integers(1, 200), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_roots(a: int, b: int, c: int, d: int, degree: int) -> None:
    same = Fraction(a) ** degree * b == Fraction(c) ** degree * d and a * c >= 0
    if a == c == 0:
        same = True
    one, other = (rf"{x}\sqrt[{degree}]{{{y}}}" for x, y in ((a, b), (c, d)))
    assert exact.compare(one, other) == ("right" if same else "wrong")


@given(st.lists(SMALL, min_size=1, max_size=4), st.lists(SMALL, min_size=1, max_size=4), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_products_of_factors_equal_their_expansion(roots: list[int], others: list[int], scale: int) -> None:
    def expanded(zeros: list[int]) -> list[int]:
        coefficients = [scale]
        for zero in zeros:
            shifted = [*coefficients, 0]
            coefficients = [
                one - zero * other for one, other in zip(shifted, [0, *coefficients], strict=True)
            ]
        return coefficients

    factored = str(scale) + "".join(f"(x-({zero}))" for zero in roots)
    degree = len(others)
    polynomial = "+".join(f"({c})x^{degree - i}" for i, c in enumerate(expanded(others)))
    expected = "right" if sorted(roots) == sorted(others) else "wrong"
    assert exact.compare(factored, polynomial) == expected


@given(st.lists(SMALL, min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_order_matters_in_tuples_alone(values: list[int], rng: random.Random) -> None:
    shuffled = rng.sample(values, len(values))
    reference, answer = ", ".join(map(str, values)), ", ".join(map(str, shuffled))
    assert exact.compare(reference, answer) == "right"
    assert exact.compare(rf"\{{{reference}\}}", answer) == "right"
    assert exact.compare(f"({reference})", f"({answer})") == ("right" if values == shuffled else "wrong")
    assert exact.compare(reference, ", ".join(map(str, [*shuffled, 77]))) == "wrong"


@given(SMALL, SMALL, st.sampled_from(("<", r"\le")), st.sampled_from(("<", r"\le")))
@settings(max_examples=40, deadline=None)
def test_inequalities_are_intervals(a: int, size: int, left: str, right: str) -> None:
    b = a + abs(size) + 1
    opening, closing = "(" if left == "<" else "[", ")" if right == "<" else "]"
    interval = f"{opening}{a}, {b}{closing}"
    assert exact.compare(f"{a} {left} x {right} {b}", interval) == "right"
    assert exact.compare(interval, f"{a} {left} x {right} {b + 1}") == "wrong"
    turned = f"{'[' if left == '<' else '('}{a}, {b}{closing}"
    assert exact.compare(f"{a} {left} x {right} {b}", turned) == "wrong"


HOSTILE = [
    "10^{10^{10^{10}}}",
    "9^{9^{9^{9^{9}}}}",
    "99999999!",
    "99999999!!",
    "((99999!)!)!",
    "2^{99999999999999}-1",
    "9" * 1_900 + "^{" + "9" * 90 + "}",
    "1e999999999",
    "1e99999",
    "(" * 990 + "x" + ")" * 990,
    "{" * 990 + "x" + "}" * 990,
    "-" * 1_900 + "1",
    "\\frac{1}" * 240,
    "\\sqrt" * 390,
    "\\sqrt{" * 320 + "2" + "}" * 320,
    "(x+y+z+w+1)^{99}",
    "((((x+y+z+1)^{9})^{9})^{9})^{9}",
    "+".join(f"x_{i}" for i in range(390)),
    "*".join(f"(x_{i}+1)" for i in range(190)),
    "\\binom{9999999}{4999999}",
    "1," * 990 + "1",
    "\\{" + ",".join(f"\\sqrt{{{i}+\\sqrt{{2}}}}" for i in range(59)) + "\\}",
    "|" * 1_900,
    "x_" * 950,
    "1/" * 950 + "1",
    "\\text{" * 320 + "}" * 320,
    "[" * 50 + "1,2" + "]" * 50,
    "\\begin{pmatrix}" + "1&" * 900 + "1\\end{pmatrix}",
    "²" * 1_900,
    "\\sin" * 480 + " x",
    "e^{e^{e^{e^{e^{99}}}}}",
    "0.\\overline{" + "7" * 1_900 + "}",
    "x" + "!" * 1_900,
    "\\pm1" * 480,
    "x \\in " * 330,
    "1<" * 900 + "2",
    "a=" * 900 + "2",
    "n\\equiv" * 250 + "\\pmod 7",
    "1 \\cup " * 280,
    "5 " + "a " * 990,
    "\x00\ud800\uffff" * 600,
]


@pytest.mark.parametrize("reference", ["7", r"\sqrt{2}+x", r"\{1, \sqrt{2}\}"])
def test_no_answer_is_too_odd_or_costs_much(reference: str) -> None:
    # Written out, the first of these numbers would fill every memory. That all of them end is what is tested.
    for answer in HOSTILE:
        assert exact.compare(reference, answer) != "right"
        assert exact.canonical(answer) != exact.canonical(reference)


@given(st.text(), st.text(alphabet=r"\{}()[]^_+-*/=<>!|,.:;$%& 0123456789abxyfract sqrtpi", max_size=60))
@settings(max_examples=150, deadline=None)
def test_nothing_raises(one: str, other: str) -> None:
    for text in (one, other):
        exact.compare("5", text)
        exact.compare(text, r"\frac{x}{2}")
        exact.canonical(text)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        (r"1+\sqrt{2}", r"\sqrt{3+2\sqrt{2}}", "right"),
        (r"1+\sqrt{2}+10^{-30}", r"\sqrt{3+2\sqrt{2}}", "wrong"),
        ("n+1", r"\frac{(n+1)!}{n!}", "right"),
        (r"\cos 2x", r"1-2\sin^2 x", "right"),
        (r"\cos 2x", r"1-2\cos^2 x", "wrong"),
        (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} k", "right"),
        (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n-1} k", "wrong"),
        (r"\frac{1}{3}", r"\int_0^1 x^2 dx", "right"),
        ("11", r"\int_0^1 33x^2 dx 5 6", "unparsable"),  # math-verify takes the last two numbers for a sum
        ("x", r"\sqrt{x^2}", "wrong"),
        ("1, 2, \\ldots, n", r"1, 3, \ldots, 2n-1", "wrong"),
        (r"\triangle ABC", r"\triangle DEF", "unparsable"),
    ],
)
def test_computer_algebra_proves_or_refuses(reference: str, answer: str, expected: str) -> None:
    assert exact.compare(reference, answer) in (None, expected)
    assert symbolic.compare(reference, answer) == expected
