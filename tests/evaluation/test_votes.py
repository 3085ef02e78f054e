"""maj@k counts answers that the task's judge calls equal as votes for the same answer."""

from __future__ import annotations

import pytest

from ctpo.evaluation.judged import JudgedResponse, judge
from ctpo.evaluation.sampled import summarise
from ctpo.evaluation.votes import votes
from ctpo.tasks import Problem, Task
from ctpo.tasks.mathematics import math_task
from ctpo.tasks.sources import DatasetSource

MATHEMATICS = math_task("mathematics", DatasetSource(name="mathematics"))


def judged(task: Task, answer: str, texts: list[str]) -> list[JudgedResponse]:
    responses = [
        JudgedResponse(
            problem=Problem(prompt="p", answer=answer, id="0"),
            sample=i,
            text=text,
            extracted=None,
            verdict=None,
            finished=True,
            tokens=1,
            calls=[],
            too_long=False,
            error=None,
        )
        for i, text in enumerate(texts)
    ]
    return judge(task, responses)


@pytest.mark.parametrize(
    ("answer", "given", "cast"),
    [
        (r"\frac{1}{2}", [r"\frac12", "3", "1/2", "6/2", "0.5", "3.0"], [0, 1, 0, 1, 0, 1]),
        ("7", [r"x+\sqrt{12}", "7", r"2\sqrt{3}+x", "x", r"\sqrt{3}+x+\sqrt{3}", "7.0"], [0, 1, 0, 2, 0, 1]),
        ("3", ["5", "6", "7"], [0, 1, 2]),
    ],
)
def test_equal_answers_are_one_vote(answer: str, given: list[str], cast: list[int]) -> None:
    group = judged(MATHEMATICS, answer, [rf"so \boxed{{{text}}}" for text in given])
    [labels] = votes(MATHEMATICS, [group])
    assert [labels.index(label) for label in labels] == [cast.index(vote) for vote in cast]


def test_several_problems_do_not_mix_and_no_answer_does_not_vote() -> None:
    first = judged(MATHEMATICS, "1", [r"\boxed{1}", r"\boxed{0.5}", "none", "none", r"\boxed{\frac{1}{2}}"])
    second = judged(
        MATHEMATICS, "0.5", [r"\boxed{1/2}", r"\boxed{2}", r"\boxed{4/2}", r"\boxed{0.5}", r"\boxed{.5}"]
    )
    figures = summarise(MATHEMATICS, [*first, *second], samples=5)
    assert figures["majority@5"] == 0.5  # the first problem's majority is 1/2, twice; the second's is right


def test_a_check_of_ones_own_counts_texts() -> None:
    def check(completion: str, answer: str) -> bool:
        return float(completion) == float(answer)

    own = Task(name="own", problems=lambda *_: [], check=check, extract=str)
    assert votes(own, [judged(own, "1", ["1", "1.0", "2"])]) == [["1", "1.0", "2"]]
