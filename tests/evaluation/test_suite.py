"""Whole evaluations with the embedded model: figures, files, and continuing after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctpo.cli.main import main
from ctpo.errors import UserError
from ctpo.evaluation.suite import Suite, run_suite
from ctpo.tasks import Problem, Task, get_task
from ctpo.tasks.arithmetic import model_path


@pytest.fixture
def suite() -> Suite:
    tasks = {"arithmetic": get_task("arithmetic")}
    return Suite(tasks=tasks, model=str(model_path()), samples=4, limit=10, rows_at_once=16)


def test_figures_are_those_of_the_rows(suite: Suite, tmp_path: Path) -> None:
    figures, rows = run_suite(suite, output=tmp_path)
    held = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert held == [response.record() for response in rows["arithmetic"]]
    assert [(row["id"], row["sample"]) for row in held] == [
        (problem.id, i) for problem in suite.problems(suite.tasks["arithmetic"]) for i in range(4)
    ]
    result = figures["results"]["arithmetic"]
    assert json.loads((tmp_path / "eval.json").read_text())["results"]["arithmetic"] == result
    right = [sum(row["correct"] for row in held[i : i + 4]) for i in range(0, 40, 4)]
    assert 0 < sum(right) < 40
    assert result["avg@4"] == pytest.approx(sum(right) / 40)
    assert result["pass@4"] == pytest.approx(sum(map(bool, right)) / 10)
    assert result["tool_use"] == sum(bool(row["calls"]) for row in held) / 40
    for row in held:
        assert row["correct"] == (row["found"] == row["answer"])


@pytest.mark.parametrize(
    ("kept", "at_once"), [(0, 16), (3, 16), (16, 16), (17, 16), (35, 16), (40, 16), (17, 8), (35, 40)]
)
def test_a_killed_evaluation_goes_on_as_if_undisturbed(
    suite: Suite, tmp_path: Path, kept: int, at_once: int
) -> None:
    suite = replace(suite, tasks={"bare": replace(suite.tasks["arithmetic"], tool=None)})
    _, undisturbed = run_suite(suite, output=tmp_path)
    path = tmp_path / "transcripts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:kept]) + (lines[kept][:20] if kept < 40 else ""))
    done: list[int] = []
    # In blocks of another size, as after a batch that was too large for the memory.
    suite = replace(suite, rows_at_once=at_once)
    _, continued = run_suite(suite, output=tmp_path, progress=lambda _, at, of: done.append(at))
    assert continued == undisturbed
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        response.record() for response in undisturbed["bare"]
    ]
    assert done[0] == kept // 4 if kept < 40 else done == [10]


def test_an_evaluation_of_other_tasks_in_the_folder_is_refused(suite: Suite, tmp_path: Path) -> None:
    run_suite(suite, output=tmp_path)
    other = replace(suite, tasks={"other": suite.tasks["arithmetic"]})
    with pytest.raises(UserError, match=r"holds an evaluation with tasks=\['arithmetic'\], not \['other'\]"):
        run_suite(other, output=tmp_path)


def test_problems_beyond_the_context_are_counted_not_fatal(suite: Suite) -> None:
    task = get_task("arithmetic")

    def problems(split: str, count: int, seed: int) -> list[Problem]:
        return [*task.problems(split, 2, seed), Problem(prompt="1+" * 200 + "1=", answer="201", id="long")]

    figures, rows = run_suite(replace(suite, tasks={"t": replace(task, problems=problems)}))
    assert figures["results"]["t"]["too_long"] == 1
    assert [each.correct for each in rows["t"] if each.problem.id == "long"] == [False] * 4


def test_several_tasks_are_averaged_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": problem.prompt, "answer": problem.answer}
        for problem in get_task("arithmetic").problems("test", 4, 1)
    ]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = Task(name="own", problems=get_task("own.jsonl").problems, check=get_task("arithmetic").check)
    monkeypatch.setattr(
        "ctpo.cli.eval.get_task", lambda name, tools: plain if name == "own.jsonl" else get_task(name, tools)
    )
    words = [
        "eval",
        "embedded",
        "--task",
        "arithmetic",
        "--task",
        "own.jsonl",
        "--limit",
        "4",
        "--samples",
        "2",
    ]
    assert main([*words, "--output", "out"]) == 0
    printed = capsys.readouterr().out
    assert "average" in printed
    assert "maj@2" in printed
    figures: dict[str, Any] = json.loads(Path("out/eval.json").read_text())
    results = figures["results"]
    assert figures["average"] == pytest.approx(
        (results["arithmetic"]["avg@2"] + results["own.jsonl"]["avg@2"]) / 2
    )
    assert results["own.jsonl"]["tool_use"] == 0
    assert Path("out/transcripts-own.jsonl.jsonl").exists()
    assert Path("out/transcripts-arithmetic.jsonl").exists()


def test_a_conversation_needs_a_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    assert main(["eval", "embedded", "--task", str(tmp_path / "f.jsonl")]) == 2
    assert "the model's tokenizer has no chat template" in capsys.readouterr().err
