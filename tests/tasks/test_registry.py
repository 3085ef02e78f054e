"""Tasks by name, file, dataset and generator."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from ctpo.errors import UserError
from ctpo.tasks import get_task, reward_function

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
        ("gsm8k", "openai/gsm8k cannot be loaded from the hub"),
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
    with pytest.raises(UserError, match="composite makes no problems by itself: Must specify at least one"):
        get_task("reasoning_gym:composite").problems("test", 5, 0)


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
    """A problem of countdown has many right answers, and its judge evaluates the given expression."""
    task = get_task("reasoning_gym:countdown")
    problem = task.problems("test", 1, 0)[0]
    metadata = json.loads(problem.answer)["metadata"]
    verdicts = [
        task.check.verdict(f"<answer>{answer}</answer>", problem.answer)
        for answer in (f"({metadata['expression']})", "1", "import os", "9**9**9**9")
    ]
    assert verdicts == ["right", "wrong", "wrong", "timeout"]
    assert task.check.account == {"right": 1, "wrong": 2, "timeout": 1}


@needs_reasoning_gym
def test_a_judge_gets_the_entry_as_it_was_made() -> None:
    """The judge of rearc compares boards made of tuples, which JSON does not have."""
    task = get_task("reasoning_gym:rearc")
    problem = task.problems("test", 1, 0)[0]
    answer = json.loads(problem.answer)["answer"]
    assert task.check.verdict(f"<answer>{answer.replace(' ', '  ')}</answer>", problem.answer) == "right"
    assert task.check.verdict(f"<answer>{answer}0</answer>", problem.answer) == "wrong"


@needs_reasoning_gym
def test_an_answer_that_is_a_program_stays_in_the_sandbox(tmp_path: Path) -> None:
    """The judge of countdown hands the model's text to sympy's parser, which evaluates it as Python."""
    task = get_task("reasoning_gym:countdown")
    problem = task.problems("test", 1, 0)[0]
    attack = f"__import__('os').system('touch {tmp_path}/owned') or open('{tmp_path}/owned', 'w')"
    assert not task.check(f"<answer>{attack}</answer>", problem.answer)
    assert list(tmp_path.iterdir()) == []


OWN = """
from ctpo.tasks import Problem, PythonTool, Task
def problems(split, count, seed):
    first = {"train": 10, "test": 60}[split]
    return [Problem(prompt=f"{n}+7=", answer=str(n + 7), id=str(n)) for n in range(first, first + 40)][:count]
def check(completion, answer):
    return completion.rstrip(" .").endswith(answer)
def reward(completion, answer):
    return check(completion, answer) - 0.25 * completion.count("<py>")
task = Task(name="sevens", problems=problems, check=check, reward=reward, tool=PythonTool())
"""


def test_a_task_of_ones_own_in_ten_lines(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN + "other = Task(name='other', problems=problems, check=check)\n")
    assert len(OWN.strip().splitlines()) <= 10
    task = get_task(f"{tmp_path}/mine.py")
    assert task is get_task(f"{tmp_path}/mine.py:task")
    assert (task.name, get_task(f"{tmp_path}/mine.py:other").name) == ("sevens", "other")
    assert get_task(f"{tmp_path}/mine.py?tool=none").tool is None
    assert task.problems("test", 2, 0)[1].answer == "68"
    rewards = reward_function(task)(["p"] * 3, ["so 67", "<py>1</py> 67", "68"], ["67"] * 3)
    assert rewards == [1.0, 0.75, 0.0]


def test_ones_own_form_of_a_shipped_task_from_files(folder: Path) -> None:
    (folder / "short.py").write_text(
        "from dataclasses import replace\nfrom ctpo.tasks import get_task\n"
        "task = replace(get_task('gsm8k'), system='Be brief.')\n"
    )
    task = get_task(f"{folder}/short.py@{folder}")
    assert task.system == "Be brief."
    assert [problem.answer for problem in task.problems("test", 2, 0)] == ["2", "4"]
    with pytest.raises(UserError, match="nowhere does not exist"):
        get_task(f"{folder}/short.py@nowhere")


def test_a_file_that_changed_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    get_task(str(path))
    path.write_text(OWN.replace("sevens", "eights"))
    os.utime(path, ns=(1, 1))
    assert get_task(str(path)).name == "eights"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "mine.py", "mine.py does not exist; give a Python file that defines a ctpo.tasks.Task"),
        (
            "import nosuchthing",
            "mine.py",
            "cannot be run .ModuleNotFoundError: No module named 'nosuchthing'",
        ),
        ("task = 1 +", "mine.py", "cannot be run .SyntaxError"),
        ("task = 1", "mine.py", "has int, not a Task, as 'task'; assign a ctpo.tasks.Task to task"),
        ("x = 1", "mine.py:y", "holds no 'y'; assign a ctpo.tasks.Task to y"),
        (OWN, "mine.py:tusk", "holds no 'tusk'; write mine.py:task"),
        (OWN, "mine.py?prompt=q", "no option 'prompt'"),
    ],
)
def test_mistakes_in_a_file_take_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("mine.py").write_text(content)
    with pytest.raises(UserError, match=message):
        get_task(name)
