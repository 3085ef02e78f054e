"""The task object, its registry and its reward function."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ctpo.tasks import Problem, PythonTool, Task, get_task, reward_function, task_names


def _problems(split: str, count: int, seed: int) -> list[Problem]:
    return [Problem(prompt=f"{split} {i}", answer=str(i), id=f"{split}-{seed}-{i}") for i in range(count)]


def _check(completion: str, answer: str) -> bool:
    return completion.endswith(answer)


ECHO = Task(name="echo", problems=_problems, check=_check, tool=PythonTool())


def test_registry_returns_every_task_it_names() -> None:
    assert "arithmetic" in task_names()
    assert [get_task(name).name for name in task_names()] == list(task_names())
    with pytest.raises(ValueError, match=r"'chess' is unknown; use one of .*arithmetic"):
        get_task("chess")


def test_a_name_that_cannot_be_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name='a/b'"):
        Task(name="a/b", problems=_problems, check=_check)


def test_reward_in_trl_calling_convention() -> None:
    reward = reward_function(ECHO)
    got = reward(
        prompts=["p", "p", "q"],
        completions=["it is 7", "it is 8", ""],
        completion_ids=[[1], [2], []],
        answer=["7", "7", "9"],
        id=["a", "a", "b"],
        trainer_state=None,
        log_extra=print,
        log_metric=print,
    )
    assert got == [1.0, 0.0, 0.0]
    assert all(type(value) is float for value in got)


def test_reward_is_logged_under_the_name_of_the_task() -> None:
    # The very function by which TRL names a reward in its metrics.
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    assert grpo.get_callable_name(reward_function(ECHO)) == "echo"


def test_reward_of_a_conversation_judges_the_last_assistant_turn() -> None:
    turns = [
        {"role": "assistant", "content": "so 7"},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "so 8"},
    ]
    silent = [{"role": "assistant", "content": None, "tool_calls": []}]
    reward = reward_function(ECHO)
    assert reward([[], [], [], []], [turns, turns, silent, []], ["8", "7", "7", "7"]) == [1.0, 0.0, 0.0, 0.0]


def test_reward_refuses_columns_of_different_length() -> None:
    with pytest.raises(ValueError, match="answer has 1 rows for 2 prompts and 2 completions"):
        reward_function(ECHO)(["p", "q"], ["7", "8"], ["7"])


def test_tasks_import_neither_trainer_nor_model_library() -> None:
    heavy = "{'trl', 'transformers', 'torch', 'datasets'}"
    program = f"import sys, ctpo.tasks; print({heavy} & set(sys.modules), 'ctpo.sandbox' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() False"


def test_messages_put_system_and_examples_before_the_prompt() -> None:
    examples = ({"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"})
    task = Task(name="echo", problems=_problems, check=_check, system="Be brief.", examples=examples)
    assert task.conversational
    assert not ECHO.conversational
    assert [m["role"] for m in task.messages("2+2")] == ["system", "user", "assistant", "user"]
    assert task.messages("2+2")[-1]["content"] == "2+2"
    assert Task(name="echo", problems=_problems, check=_check, chat=True).messages("x") == [
        {"role": "user", "content": "x"}
    ]
    with pytest.raises(ValueError, match=r"examples\[0\]=.*give role"):
        Task(name="echo", problems=_problems, check=_check, examples=({"role": "judge", "content": "2"},))
