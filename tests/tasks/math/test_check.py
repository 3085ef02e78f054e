"""The judge of mathematical answers, with the real math-verify."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ctpo.tasks.math import MathCheck
from ctpo.tasks.math.verifier import Verifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    verifier = Verifier()
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("reference", "given", "verdict"),
    [
        ("70", "70", "right"),
        ("70", "71", "wrong"),
        ("1,234", "1234.0", "right"),
        (r"\frac{1}{2}", "0.5", "right"),
        (r"\frac{1}{2}", "0.51", "wrong"),
        ("91/6", r"\frac{91}{6}", "right"),
        (r"\{1, 2\}", "2, 1", "right"),
        (r"\{1, 2\}", "1, 3", "wrong"),
        ("2^{99}", "633825300114114700748351602688", "right"),
        (r"5\pi + 6\sqrt{3}", r"6\sqrt{3}+5\pi", "right"),
        (r"5\pi + 6\sqrt{3}", r"6\sqrt{3}-5\pi", "wrong"),
        ("18", r"18\text{ dollars}", "right"),
    ],
)
def test_verdicts(verifier: Verifier, reference: str, given: str, verdict: str) -> None:
    assert MathCheck(verifier).verdict(f"so \\boxed{{{given}}}", reference) == verdict


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\ud800",
        r"\boxed{\frac{}{",
        r"\boxed{\frac{}{}}",
        "\\boxed{" + "(" * 500 + "}",
        r"\boxed{\int}",
    ],
)
def test_odd_text_is_never_right_and_never_raises(verifier: Verifier, text: str) -> None:
    check = MathCheck(verifier)
    assert check(text, r"\sqrt{2}") is False
    assert check.account.total() == 1


def test_every_verdict_is_counted(verifier: Verifier) -> None:
    check = MathCheck(verifier)
    assert [check(text, "7") for text in (r"\boxed{7}", r"\boxed{8}", "seven")] == [True, False, False]
    assert check.account == {"right": 1, "wrong": 1, "no answer": 1}
