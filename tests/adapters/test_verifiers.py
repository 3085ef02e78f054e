"""Environments of the package verifiers, with their own loops, tools and rubrics."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ctpo.errors import UserError
from ctpo.rollout.environments import EnvironmentRunner
from ctpo.tasks.task import RatedSource

pytest.importorskip("verifiers", reason="needs the package verifiers")
pytest.importorskip("verifiers.envs", reason="needs verifiers up to 0.3, which has MultiTurnEnv")

import verifiers as vf
from datasets import Dataset

from ctpo.adapters.environments.verifiers import from_verifiers

SUMS = Dataset.from_list([{"question": "2+2?", "answer": "4"}, {"question": "3+3?", "answer": "6"}])


def exact(completion: Any, answer: str, **_: Any) -> float:
    """1 if the last message is the answer."""
    return float(completion[-1]["content"].strip() == answer)


def sets(**settings: Any) -> dict[str, Any]:
    return {"dataset": SUMS, "eval_dataset": SUMS, "rubric": vf.Rubric(funcs=[exact]), **settings}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: one of them
        b: the other
    """
    return a + b


class Guess(vf.MultiTurnEnv):  # type: ignore[misc]
    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        guess, number = int(messages[-1].content), int(state["answer"])
        if guess == number:
            state["final_env_response"] = [vf.UserMessage(content="right")]
            return state["final_env_response"]
        return [vf.UserMessage(content="higher" if guess < number else "lower")]


def found(completion: Any, answer: str, **_: Any) -> float:
    """1 if one of the model's messages is the answer."""
    return float(any(each["content"] == answer for each in completion if each["role"] == "assistant"))


def first(task: Any) -> tuple[Any, Any]:
    (problem,) = task.problems("train", 1, 0)
    return task.environment(), problem


def test_a_single_turn_and_its_rubric() -> None:
    task = from_verifiers(vf.SingleTurnEnv(**sets(system_prompt="Be brief.")), name="sums")
    problems = task.problems("test", 9, 0)
    assert [(each.id, each.answer) for each in problems] == [("test-0", "4"), ("test-1", "6")]
    runner = EnvironmentRunner(task)
    answers = runner.reset([*problems, problems[1]])
    assert [each["content"] for each in answers[1]] == ["Be brief.", "3+3?"]
    steps = runner.step([0, 1], ["4", "7"])
    assert [(step.reward, step.done) for step in steps] == [(1.0, True), (0.0, True)]
    assert runner.finish_texts([2], ["6"]) == [1.0]  # cut short, and scored as it is
    runner.close()


def test_a_column_of_difficulties() -> None:
    rows = [
        {"question": f"{i}?", "answer": "", "difficulty": "hard", "rate": i / 4, "info": {"level": "easy"}}
        for i in range(3)
    ]
    own = vf.SingleTurnEnv(**sets(dataset=Dataset.from_list(rows)))

    def difficulties(**settings: Any) -> list[Any]:
        return [each.difficulty for each in from_verifiers(own, **settings).problems("train", 9, 0)]

    assert difficulties() == ["hard"] * 3
    assert difficulties(difficulty="rate") == [0.0, 0.25, 0.5]
    assert difficulties(difficulty="info.level") == ["easy"] * 3
    assert difficulties(difficulty="other") == [None] * 3
    assert isinstance(from_verifiers(own).problems, RatedSource)  # so that a recipe may name the column


def test_several_turns() -> None:
    task = from_verifiers(Guess(**sets(rubric=vf.Rubric(funcs=[found]), max_turns=3)))

    async def talk() -> list[Any]:
        environment, problem = first(task)
        answers = [await environment.reset(problem), await environment.step("2"), await environment.step("4")]
        await environment.reset(problem)
        answers += [await environment.step("9"), await environment.finish("")]
        await environment.reset(problem)
        for guess in ("1", "2", "3"):
            answers.append(await environment.step(guess))
        return answers

    asked = [{"role": "user", "content": "2+2?"}]
    higher, lower = ([{"role": "user", "content": word}] for word in ("higher", "lower"))
    assert asyncio.run(talk()) == [
        asked,
        (higher, 0.0, False),
        (None, 1.0, True),
        (lower, 0.0, False),
        0.0,
        *[(higher, 0.0, False)] * 2,
        (None, 0.0, True),  # the environment's own limit of turns
    ]


def test_tools() -> None:
    task = from_verifiers(vf.ToolEnv(**sets(tools=[add], max_turns=5)))

    async def talk() -> list[Any]:
        environment, problem = first(task)
        await environment.reset(problem)
        calls = [
            SimpleNamespace(name="add", arguments={"a": 2, "b": 2}, error=None),
            SimpleNamespace(name="add", arguments={}, error="no JSON"),
        ]
        return [environment.schemas, await environment.use("Let me see.", calls), await environment.step("4")]

    (schema,), (results, reward, over), ending = asyncio.run(talk())
    assert schema["function"]["name"] == "add"
    assert results[0] == "4"
    assert "Expecting value" in results[1]
    assert (reward, over, ending) == (0.0, False, (None, 1.0, True))


def test_errors_of_the_environment_are_one_line() -> None:
    runner = EnvironmentRunner(from_verifiers(Guess(**sets())))
    runner.reset(runner_problems := from_verifiers(Guess(**sets())).problems("train", 1, 0))
    with pytest.raises(UserError, match=r"step raises ValueError: invalid literal .* \(problem train-0\)"):
        runner.step([0], ["two"])
    assert runner_problems[0].id == "train-0"


def test_what_is_no_such_environment_is_refused() -> None:
    def ranks(completions: Any, **_: Any) -> list[float]:
        return [0.0 for _ in completions]

    with pytest.raises(UserError, match="has no run_rollout"):
        from_verifiers(object())
    with pytest.raises(UserError, match="scores groups of responses"):
        from_verifiers(vf.SingleTurnEnv(**sets(rubric=vf.Rubric(funcs=[ranks]))))
