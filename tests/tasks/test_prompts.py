"""Prompts that are conversations."""

from __future__ import annotations

from typing import Any

import pytest

from ctpo.tasks import Problem, Task
from ctpo.tasks.prompts import prompt_key
from ctpo.tasks.task import as_conversation

ASKED = {"role": "user", "content": "2+2"}
SYSTEM = {"role": "system", "content": "Count."}


def problem(prompt: Any) -> Problem:
    return Problem(prompt=prompt, answer="4", id="7")


TASK = Task(
    name="sums",
    problems=lambda split, count, seed: [],
    check=lambda completion, answer: False,
    system="Be brief.",
    examples=({"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}),
)


def test_a_row_keeps_its_own_system_message() -> None:
    without, own = problem([ASKED]).prompt, problem([SYSTEM, ASKED]).prompt
    assert TASK.messages(without) == TASK.messages("2+2")
    assert [each["content"] for each in TASK.messages(own)] == ["Count.", "1+1", "2", "2+2"]
    turns = [ASKED, {"role": "assistant", "content": "4"}, {"role": "user", "content": "and 3+3?"}]
    assert [each["content"] for each in TASK.messages(turns)][-3:] == ["2+2", "4", "and 3+3?"]


def test_messages_are_made_plain() -> None:
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "+2\ud83d"}]
    assert problem([{"role": "user", "content": parts, "weight": 1}]).prompt == (
        {"role": "user", "content": "2+2\ufffd"},
    )
    assert prompt_key(problem([ASKED]).prompt) != prompt_key(problem([SYSTEM, ASKED]).prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "has no messages"),
        ([ASKED, {"role": "assistant", "content": "4"}], "ends with a message of role 'assistant'"),
        ([SYSTEM], "ends with a message of role 'system'"),
        ([{"role": "judge", "content": "4"}], "message 1 with the role 'judge'; use one of system, user"),
        (["2+2"], "has '2\\+2' as message 1"),
        ([{"role": "user", "content": None}], "message 1 with the content None; only text"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "only text can be used"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}, ASKED], "message 1 with tool_calls"),
        (7, "is 7; give a text or a list of messages"),
        (b"2+2", "is b'2\\+2'"),
    ],
)
def test_what_no_model_can_answer_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"the prompt of problem 7 .*{message}"):
        problem(prompt)


def test_one_conversation_makes_a_bare_task_one() -> None:
    bare = Task(name="bare", problems=TASK.problems, check=TASK.check)
    assert as_conversation(bare, [problem("2+2")]) is bare
    assert as_conversation(bare, [problem("2+2"), problem([ASKED])]).conversational
    assert as_conversation(TASK, [problem([ASKED])]) is TASK
