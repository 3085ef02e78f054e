"""Tasks by name, file, dataset and generator."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from ctpo.errors import UserError
from ctpo.tasks import get_task

needs_reasoning_gym = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="an extra: one of its dependencies needs a compiler"
)
ROWS = [{"question": f"What is {i} + {i}?", "answer": f"Twice {i}.\n#### {2 * i}"} for i in range(1, 6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "train.jsonl").write_text(text)
    (tmp_path / "test.jsonl").write_text(text.replace("What", "Say what"))
    renamed = [{"q": row["question"], "a": row["answer"], "id": f"r{i}"} for i, row in enumerate(ROWS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(renamed), tmp_path / "renamed.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    return tmp_path


def test_a_local_directory_in_place_of_the_hub(folder: Path) -> None:
    task = get_task(f"gsm8k@{folder}")
    assert task.name == "gsm8k"
    test, train = task.problems("test", 3, 0), task.problems("train", 100, 0)
    assert [problem.prompt for problem in test] == [
        row["question"].replace("What", "Say what") for row in ROWS[:3]
    ]
    assert [problem.answer for problem in test] == ["2", "4", "6"]
    assert sorted(problem.answer for problem in train) == ["10", "2", "4", "6", "8"]
    assert train != task.problems("train", 100, 1)
    assert train == task.problems("train", 100, 0)
    assert task.check(r"thus \boxed{4}", test[1].answer)


def test_a_parquet_file_by_column_mapping(folder: Path) -> None:
    problems = get_task(f"{folder}/renamed.parquet?prompt=q&answer=a").problems("test", 9, 0)
    assert [(each.id, each.answer) for each in problems] == [(f"r{i}", str(2 * i + 2)) for i in range(5)]


def test_options_of_the_tool(folder: Path) -> None:
    path = folder / "test.jsonl"
    without = get_task(f"{path}?tool=none")
    assert without.tool is None
    assert "Python" not in (without.system or "")
    styles = [tool.style for name in ("?tool=fenced", "") if (tool := get_task(f"{path}{name}").tool)]
    assert styles == ["fenced", "auto"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm9k", r"task 'gsm9k' is unknown; did you mean 'gsm8k'\?"),
        ("gsm8k@nowhere", "nowhere does not exist"),
        ("nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("test.jsonl?prompt=q", r"line 1 has no column 'q' \(it has: question, answer\)"),
        ("empty.jsonl", "is empty"),
        ("broken.parquet", "cannot be read as parquet"),
        ("test.jsonl?tool=hammer", "tool='hammer' is unknown; use one of none"),
        ("test.jsonl?colour=red", "option 'colour=red' is not KEY=VALUE"),
        ("test.jsonl?split=dev", "no option 'split'"),
        ("arithmetic@test.jsonl", "makes its problems itself"),
        ("hub:nobody", "write hub:OWNER/NAME"),
        ("deepscaler", "task 'deepscaler' has no test split"),
        ("gsm8k", "openai/gsm8k cannot be had from the hub"),
    ],
)
def test_mistakes_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message) as caught:
        get_task(name).problems("test", 5, 0)
    assert "\n" not in str(caught.value)


def test_a_file_is_held_out_only(folder: Path) -> None:
    with pytest.raises(UserError, match="serves as test split only"):
        get_task(f"gsm8k@{folder}/test.jsonl").problems("train", 5, 0)


@needs_reasoning_gym
def test_an_unknown_generator_is_named() -> None:
    with pytest.raises(UserError, match="no generator 'chain_sums'; use for example chain_sum"):
        get_task("reasoning_gym:chain_sums").problems("test", 5, 0)


@pytest.mark.skipif(find_spec("reasoning_gym") is not None, reason="the extra is installed")
def test_a_missing_extra_is_named() -> None:
    with pytest.raises(UserError, match=r"pip install 'ctpo\[reasoning-gym\]'"):
        get_task("reasoning_gym:chain_sum").problems("test", 5, 0)


@needs_reasoning_gym
def test_a_generator_of_reasoning_gym() -> None:
    task = get_task("reasoning_gym:chain_sum")
    train, test = task.problems("train", 30, 0), task.problems("test", 30, 0)
    assert len({each.prompt for each in train + test}) == 60
    assert test == task.problems("test", 30, 0)
    answer = json.loads(test[0].answer)["answer"]
    assert task.check(f"so <answer>{answer}</answer>", test[0].answer)
    assert task.check(f"so \\boxed{{{answer}}}", test[0].answer)
    assert not task.check(f"so <answer>{answer}1</answer>", test[0].answer)
    assert not task.check(answer, test[0].answer)


@needs_reasoning_gym
def test_a_judge_that_looks_at_more_than_the_answer() -> None:
    """Countdown has many right answers to one problem; its judge evaluates the expression."""
    task = get_task("reasoning_gym:countdown")
    problem = task.problems("test", 1, 0)[0]
    metadata = json.loads(problem.answer)["metadata"]
    assert task.check(f"<answer>({metadata['expression']})</answer>", problem.answer)
    assert not task.check("<answer>import os</answer>", problem.answer)
