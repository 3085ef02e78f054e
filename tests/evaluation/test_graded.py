"""Graded scores: shares between wrong and right, their means and errors, and what is stored of them."""

from __future__ import annotations

import statistics

import pytest

from ctpo.errors import UserError
from ctpo.evaluation import Evaluation
from ctpo.evaluation.judged import JudgedResponse, judge
from ctpo.evaluation.sampled import summarise
from ctpo.runs.scores import score_name
from ctpo.tasks import Problem, Task
from ctpo.tasks.task import judgements, reward_function


def _problems(split: str, count: int, seed: int) -> list[Problem]:
    return [Problem(prompt=f"{i}", answer="abcd", id=f"p{i}") for i in range(count)]


def _share(completion: str, answer: str) -> float:
    return sum(a == b for a, b in zip(completion, answer, strict=False)) / len(answer)


GRADED = Task(name="letters", problems=_problems, check=_share)
TEXTS = ["abcd", "abxx", "xxxx", "abcx"]
SCORES = [1.0, 0.5, 0.0, 0.75]


def _responses(task: Task, texts: list[str], rewards: list[list[float | None]]) -> list[JudgedResponse]:
    made = [
        JudgedResponse(
            problem=problem,
            sample=0,
            text=text,
            extracted=None,
            verdict=None,
            finished=True,
            tokens=4,
            calls=[],
            too_long=False,
            error=None,
            turn_rewards=turns,
        )
        for problem, text, turns in zip(_problems("test", len(texts), 0), texts, rewards, strict=True)
    ]
    return judge(task, made)


def test_a_check_that_grades() -> None:
    responses = _responses(GRADED, TEXTS, [[]] * 4)
    assert [each.score for each in responses] == SCORES
    assert [each.verdict for each in responses] == ["right", "partly right", "wrong", "partly right"]
    evaluation = Evaluation(responses=responses)
    assert evaluation.accuracy == statistics.mean(SCORES)
    assert evaluation.standard_error == pytest.approx(statistics.stdev(SCORES) / 2)
    figures = summarise(GRADED, responses, 2)  # two problems of two samples
    assert (figures["pass@1"], figures["pass@2"]) == (statistics.mean(SCORES), 0.5)
    whole = summarise(GRADED, [each for each in responses if each.score in (0, 1)], 1)
    assert [score_name([each]) for each in (figures, evaluation.summary(), whole)] == [
        "score",
        "score",
        "pass@1",
    ]
    assert reward_function(GRADED)(TEXTS, TEXTS, ["abcd"] * 4) == SCORES


def test_stored_scores_are_read_back() -> None:
    for response in _responses(GRADED, TEXTS, [[]] * 4):
        record = response.record()
        assert JudgedResponse.from_record(record) == response
        assert ("score" in record) == (0 < response.score < 1)
    with pytest.raises(ValueError, match="score is 2"):
        JudgedResponse.from_record(
            {**_responses(GRADED, ["abxx"], [[]])[0].record(), "score": 2.0},
        )


def test_rewards_as_scores() -> None:
    task = Task(name="turns", problems=_problems, environment=object, passing_reward=None)
    thirds: list[list[float | None]] = [[1 / 3] * 3, [1 / 3, 0.0, 0.0], [0.0] * 3, [1 / 3, None, 0.0]]
    responses = _responses(task, TEXTS, thirds)
    assert [each.score for each in responses] == [1.0, pytest.approx(1 / 3), 0.0, 0.0]
    assert [each.verdict for each in responses] == ["right", "partly right", "wrong", "unscored"]
    with pytest.raises(UserError, match=r"grades by its environment's rewards, and one is 1\.5"):
        judgements(task, ["a"], ["b"], rewards=[1.5])


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_what_is_no_share_is_refused(value: float) -> None:
    task = Task(name="letters", problems=_problems, check=lambda completion, answer: value)
    with pytest.raises(UserError, match=r"return a share from 0 to 1, or True or False"):
        judgements(task, ["a"], ["b"], ["p0"])
