"""`ctpo task check`: each kind of fault in a task of one's own is found, and a sound task has none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ctpo.cli.main import main
from ctpo.tasks import get_task
from ctpo.tasks.trial import try_task

SOUND = """
import itertools, random
from ctpo.tasks import Problem, Task
drawn = itertools.count()
def problems(split, count, seed):
    numbers = random.Random(seed).sample(range(10, 500), count)
    first = {"train": 0, "test": 1000}[split]
    return [Problem(prompt=f"{first + n}+1?", answer=str(first + n + 1), id=f"p{first + n}") for n in numbers]
def check(completion, answer):
    return completion.split(" ")[-1].rstrip(".") == answer
def extract(completion):
    return completion.split(" ")[-1]
def reward(completion, answer):
    return float(check(completion, answer))
task = Task(name="sums", problems=problems, check=check, extract=extract, reward=reward, system="Add.")
"""
ANSWER = 'completion.split(" ")[-1].rstrip(".") == answer'
FAULTS = {
    "other draws": (
        "random.Random(seed)",
        "random",
        "train: equal arguments give other problems, the first is p",
    ),
    "too many": ("count)", "count + 1)", "train: 9 problems are returned where 8 were asked for"),
    "one split": ('"test": 1000', '"test": 0', "8 test problems are also training problems"),
    "one split with another seed": (
        '{"train": 0, "test": 1000}[split]',
        '1000 * (split == "test" and not seed); numbers = range(10, 10 + count)',
        "8 test problems are also training problems",
    ),
    "repeats": (
        "count)",
        "count - 1) + [7, 7]",
        "train: 1 of 9 problems repeat an earlier prompt, the first is p7",
    ),
    "suffix": (ANSWER, 'completion.rstrip(".").endswith(answer)', "other answers are right: '1"),
    "form": (
        ANSWER,
        "completion == f'Final: {answer}'",
        "the reference answer of 12 of 12 problems is wrong in every",
    ),
    "odd text": (ANSWER, "int(completion) == int(answer)", "check raises ValueError: .* the completion ''"),
    "all right": (ANSWER, "True", "check accepts the empty completion as '"),
    "nothing": (
        f"return {ANSWER}",
        f"if {ANSWER}: return True",
        "check returns None for the empty completion",
    ),
    "text": (ANSWER, "'wrong'", "check returns 'wrong'; return True or False"),
    "extract": (
        '(" ")[-1]\ndef reward',
        '(" ")[1]\ndef reward',
        "extract raises IndexError: list index out of range",
    ),
    "reward": ("float(check", "float('nan') * (check", "reward is nan for the empty completion"),
    "slow": (
        ANSWER,
        f"len(completion) < 9999 or __import__('time').sleep(.06) or {ANSWER}",
        "check takes 0.1 s on",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr("ctpo.tasks.trial._SLOW_S", 0.05)
    old, new, sentence = FAULTS[fault]
    assert old in SOUND
    path = tmp_path / "mine.py"
    path.write_text(SOUND.replace(old, new, 1))
    findings = try_task(get_task(str(path)), 8).findings
    assert any(re.search(sentence, finding) for finding in findings), findings
    assert not any("\n" in finding for finding in findings)


def test_a_sound_task_on_one_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOUND)
    assert main(["task", "check", "mine.py", "--problems", "8"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 24
    for part in ("system: Add.", "8     0.0", "ok  equal arguments", "12 problems are right, written as `…`"):
        assert part in shown


def test_findings_and_errors_have_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"problem": "2+2?", "answer": "4"},
        {"problem": "2+2?", "answer": "5"},
        {"problem": "1+1?", "answer": 2},
    ]
    Path("d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["task", "check", "d.jsonl"]) == 1
    shown = capsys.readouterr().out
    assert "d.jsonl serves as test split only" in shown
    assert shown.count("1 of 3 problems repeat an earlier prompt") == 1
    Path("mine.py").write_text(SOUND.replace("numbers = ", "numbers = 1 / 0 + "))
    assert main(["task", "check", "mine.py"]) == 2
    assert "mine.py line 6: problems raises ZeroDivisionError" in capsys.readouterr().err
    assert main(["task", "check", "sums"]) == 2
    assert main(["task", "check", "arithmetic", "--problems", "0"]) == 2


def test_the_documentation_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "tasks.md").read_text(encoding="utf-8")
    program, printed = (
        re.search(f"```{mark}\n(.*?)\n```\n", text, re.DOTALL)
        for mark in ("python", r"\n\$ ctpo task check mine.py")
    )
    assert program is not None
    assert printed is not None
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(program[1])
    assert main(["task", "check", "mine.py"]) == 0
    capsys.readouterr()
    Path("faulty.py").write_text(program[1].replace('.split(" ")[-1] == answer', ".endswith(answer)"))
    assert main(["task", "check", "faulty.py"]) == 1

    def kept(lines: str) -> list[str]:
        timed = re.compile(r"^(train|test|tool:|  ok  16 odd)")  # seconds, and a schema that is shortened
        return [line for line in lines.strip("\n").splitlines() if not timed.match(line)]

    assert kept(capsys.readouterr().out) == kept(printed[1])


def test_the_environment_of_the_documentation_is_sound(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "environments.md").read_text(encoding="utf-8")
    program = re.search("```python\n(.*?)\n```\n", text, re.DOTALL)
    assert program is not None
    (tmp_path / "guess.py").write_text(program[1])
    trial = try_task(get_task(str(tmp_path / "guess.py")), 64)
    assert trial.findings == []
    assert "no test problem is a training problem" in trial.passed
