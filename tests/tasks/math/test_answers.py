"""Which text is the answer."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctpo.tasks.math.answers import final_answer, reference_answer, tagged_answer
from ctpo.tasks.math.exact import canonical


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # boxes
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}} it is.", r"\frac{1}{2}"),
        (r"Case 1 gives \boxed{4}, so finally \boxed{3}", "3"),
        (r"$\boxed 5$.", "5"),
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        # boxes in a list
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$, or $\boxed{3}$", "1, 2, 3"),
        (r"$x=\boxed{6}$ and $y=\boxed{5}$", "x=6, y=5"),
        (r"\boxed{5} and \boxed{5}", "5"),
        ("\\boxed{1}\n\\boxed{2}", "2"),
        # unfinished boxes
        (r"\boxed{ {a} } and \boxed{unclosed", None),
        (r"\boxed{5", None),
        (r"\boxed{\boxed{5} + 1", None),
        (r"The answer is \boxed{4", None),
        (r"\boxed{}", None),
        (r"\boxed{5} \boxed{}", None),
        ("\\boxed{oops\n\nThe answer is 7", "7"),
        (r"\boxed{" + "1" * 3000 + "}", None),
        # the last statement
        (r"The answer is 12. But \boxed{13}", "13"),
        (r"\boxed{13}. No, the answer is 12.", "12"),
        ("first the answer is 3. Then the answer is 4.\nDone", "4"),
        (r"<answer>5</answer> no, \boxed{6}", "6"),
        (r"\boxed{6} <answer>5</answer>", "5"),
        ("<answer>\\boxed{42}</answer>", "42"),
        ("<answer> 5", None),
        ("The final answer is: $\\boxed{42}$. I hope it is correct.", "42"),
        (r"\boxed{5}. I hope the answer is correct.", "5"),
        (r"\boxed{5}. The answer is not 5.", "not 5"),
        # "answer is" and headings
        ("The final answer is: $x+1$.", "$x+1$"),
        ("The answer is 5, therefore we are done.", "5"),
        ("The answer is `5`.", "5"),
        (r"\boxed{**5**}", "5"),
        ("The answer is 5; 6", "5; 6"),
        ("The answer is 5; therefore we are done.", "5"),
        ("**Answer:** 5", "5"),
        ("**Answer**: 5", "5"),
        ("#### Answer: 42", "42"),
        ("## Final Answer\n\n42", "42"),
        ("The answer is\n\\[\n42\n\\]", "42"),
        ("The answer is:\n\n42", "42"),
        ("The answer is $$x = 2$$ as required", "x = 2"),
        ("the answer to the problem is therefore 3.5.", "3.5"),
        ("The correct answer is 42!", "42"),
        ("The answer is 5, which is prime.", "5"),
        ("The answer is 42. Let me know!", "42"),
        ("The answer is A) 5.", "A) 5"),
        ("最终答案是5。", "5"),
        ("答案：5", "5"),
        ("it is 42", None),
        ("The answer is:", None),
        ("", None),
        # four hashes
        ("work\n#### 1,234\n", "1,234"),
        ("#### \\(42\\)", "\\(42\\)"),
        ("#### $\\frac12$", "$\\frac12$"),
        ("#### 42\n\n#### Note\nfoo", "42"),
        ("#### Step 1: compute\n6*7\n#### Step 2\nThe answer is 42.", "42"),
        ("#### 2. Compute the sum", None),
        ("##### 5", None),
        # what is not addressed to the reader
        ("<think>maybe \\boxed{3}</think>\nI could not solve it.", None),
        ("<think>maybe \\boxed{3}</think>\nThe answer is \\boxed{7}", "7"),
        ("<think>so \\boxed{3}", None),
        ("so \\boxed{3}</think> The answer is 4", "4"),
        ("so \\boxed{3}</think> I do not know.", None),
        ("<think>a</think> \\boxed{4} <think>or \\boxed{5}", "4"),
        ("```python\nprint('\\\\boxed{42}')\n```\n```output\n\\boxed{42}\n```\n", None),
        ("```python\nprint(3)\n```\n```output\n3\n```\nThe answer is 3.", "3"),
        ("```\n\\boxed{3}", None),
        ("~~~\n\\boxed{3}\n~~~", None),
        ("<tool_response>\n\\boxed{4}\n</tool_response>", None),
        ('<tool_call>{"code": "print(\\"\\\\boxed{4}\\")"}</tool_call>\nAnswer: 5', "5"),
        ("<py>print('answer is 4')</py><out>answer is 4</out>", None),
        ("```python\n# </think>\n# the answer is 4\n```", None),
        ("<think>\n```python\n1\n</think>\nThe answer is 9.", "9"),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_reference_answer_takes_what_datasets_write() -> None:
    assert reference_answer("Half of 48 is 24.\n#### 72") == "72"
    assert reference_answer(r"Thus the sum is \boxed{204}.") == "204"
    assert reference_answer(" 2^{99} ") == "2^{99}"


def test_a_tagged_answer_is_unchanged() -> None:
    assert tagged_answer("<answer>1</answer> <answer>\n```\n1 2\n```</answer>") == "\n```\n1 2\n```"
    assert tagged_answer("<think><answer>1</answer></think>") is None
    assert tagged_answer("<answer>1</answer> <answer>2") is None
    assert tagged_answer("1") is None


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
        (r"\sqrt{12}", r"2\sqrt{3}"),
        ("x(x+1)", "x^2+x"),
        (r"\{2, 1\}", "1, 2"),
        ("5 cm", r"5\text{ centimeters}"),
    ],
)
def test_equal_answers_have_equal_keys(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


def test_different_answers_keep_different_keys() -> None:
    # A comma that does not part thousands parts a list; a digit lost would make a wrong answer right.
    answers = (
        "12,34 1234 1,2 12 1.2 -12 120 1e2 5 5\\% 5m (1,2) [1,2] (2,1) x y 0 \\infty -\\infty 1/0".split()
    )
    assert len({canonical(answer) for answer in answers}) == len(answers)


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    final_answer(text)
    tagged_answer(text)
    canonical(text)
    reference_answer(text)


@given(st.integers(-(10**12), 10**12))
def test_integers_survive(n: int) -> None:
    assert final_answer(f"thus \\boxed{{{n:,}}} holds") == f"{n:,}"
    assert canonical(f"{n:,}") == canonical(f"{n}.0") == str(n)


LONG = r"""
from ctpo.tasks.math.answers import final_answer, reference_answer, tagged_answer
units = [
    "\\boxed{", "\\boxed", "\\boxed{1}", "\\boxed{1} and ", "{", "}", "{}", "\\", "\\\\", "<answer>", "</answer>",
    "<answer>5</answer>", "answer", "answer is ", "answer is x ", "answer:", "answer: .", "answer is correct ",
    "answer is a" + " " * 50 + "\n", "answer to ", "answer to x", "Answer\n", "# Answer\n\n", "answer is $",
    "answer is \\(", "answer is $$", "答案是", "####", "#### ", "#### 5\n", "#### 1. a\n", "#", "$", "$x$ ", ", ",
    "and ", "x=", "\n", " ", "*", "\t", "a", "<think>", "</think>", "<think></think>", "```", "```\n", "```python\n",
    "```\n```python\n", "~~~\n", "```x", "`", "<out>", "</out>", "<tool_response>", "<py></py>", "\n\n", "\r\n", "9",
    "=", "\ud800", "é",
]
starts = ["", "answer is x", "answer is", "\\boxed{", "\\boxed", "<think>", "```python\n", "#### ", "<answer>", "$"]
def texts(length, starts, units):
    return [start + unit * (length // len(unit)) + "y" for unit in units for start in starts]
many = texts(30_000, ["", "answer is x", "\\boxed{"], units) + texts(30_000, starts, [" "])
long = texts(1_000_000, [""], ["\\boxed{", "answer is x ", "<answer>", "```\n"])
long += texts(1_000_000, starts[1:3], [" ", "*"])
for text in many + long:
    final_answer(text)
for text in long:
    tagged_answer(text)
    reference_answer(text)
print(len(many))
"""


def test_a_million_characters_take_linear_time() -> None:
    # A quadratic search takes minutes for one of the shorter texts, and hours for one of the longer ones.
    run = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stderr[-500:]
    assert int(run.stdout) > 190
