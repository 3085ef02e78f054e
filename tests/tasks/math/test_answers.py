"""Extracting the final answer, and its canonical form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctpo.tasks.math.answers import final_answer, reference_answer
from ctpo.tasks.math.exact import canonical


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}} it is.", r"\frac{1}{2}"),
        (r"\boxed{ {a} } and \boxed{unclosed", None),
        (r"The answer is 12. But \boxed{13}", "13"),
        ("work\n#### 1,234\n", "1,234"),
        ("The final answer is: $x+1$.", "$x+1$"),
        ("**Answer:** 5", "5"),
        ("Answer: 5", "5"),
        ("first the answer is 3. Then the answer is 4.\nDone", "4"),
        ("it is 42", None),
        (r"\boxed{}", None),
        ("", None),
        (r"\boxed{" + "1" * 3000 + "}", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_reference_answer_takes_what_datasets_write() -> None:
    assert reference_answer("Half of 48 is 24.\n#### 72") == "72"
    assert reference_answer(r"Thus the sum is \boxed{204}.") == "204"
    assert reference_answer(" 2^{99} ") == "2^{99}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,234", "1234"),
        ("18.00", "18"),
        ("$7$", "7"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        ("-0.50", "-0.5"),
        ("007", "7"),
    ],
)
def test_equal_answers_have_equal_forms(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


def test_different_answers_keep_different_forms() -> None:
    # A comma that does not part thousands parts a list; a digit lost would make a wrong answer right.
    answers = ["12,34", "1234", "1,2", "12", "1.2", "-12", "120", "1e2"]
    assert len({canonical(answer) for answer in answers}) == len(answers)


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    final_answer(text)
    canonical(text)
    reference_answer(text)


@given(st.integers(-(10**12), 10**12))
def test_integers_survive(n: int) -> None:
    assert final_answer(f"thus \\boxed{{{n:,}}} holds") == f"{n:,}"
    assert canonical(f"{n:,}") == canonical(f"{n}.0") == str(n)
