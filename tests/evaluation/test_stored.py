"""An evaluation's directory is bound to content: nothing old is passed off as new, and nothing is sampled in vain."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout.served import choice, serving
from safetensors.torch import load_file, save_file

from ctpo.cli.main import main
from ctpo.errors import UserError
from ctpo.evaluation.identity import judged_with, model_identity, sampled_with
from ctpo.evaluation.stored import Folder, Identity
from ctpo.evaluation.suite import Suite, run_suite
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, PythonTool, Task, get_task
from ctpo.tasks.arithmetic import model_path

PROMPTS = ("3+4=", "5+6=", "7+8=", "9+1=")


def task_of(answers: dict[str, str], **changes: Any) -> Task:
    problems = [Problem(prompt=prompt, answer=answer, id=prompt) for prompt, answer in answers.items()]
    task = Task(name="sums", problems=lambda split, count, seed: problems[:count], check=ends_with)
    return replace(task, **changes)


def ends_with(completion: str, answer: str) -> bool:
    return completion.endswith(answer)


def always(completion: str, answer: str) -> bool:
    return True


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_path(), tmp_path / "model"))


def evaluate(model: Path, task: Task, output: Path | None, **changes: Any) -> tuple[list[str], int, Any]:
    """The notices, how many problems were sampled, and the records."""
    suite = Suite(tasks={"sums": task}, model=str(model), samples=2, rows_at_once=2, max_tokens=24, seed=5)
    notices: list[str] = []
    done: list[int] = []
    figures, responses = run_suite(
        replace(suite, **changes),
        output=output,
        progress=lambda _, at, of: done.append(at),
        notice=notices.append,
    )
    if output is not None:
        held = [json.loads(line) for line in (output / "transcripts.jsonl").read_text().splitlines()]
        assert held == [response.record() for response in responses["sums"]]
        assert json.loads((output / "eval.json").read_text())["results"] == figures["results"]
    return notices, len(done) - 1, [response.record() for response in responses["sums"]]


def test_other_weights_at_the_same_path_are_sampled_anew(model: Path, tmp_path: Path) -> None:
    task, out = task_of(dict.fromkeys(PROMPTS, "7")), tmp_path / "out"
    _, _, first = evaluate(model, task, out)
    moved = tmp_path / "elsewhere"
    model.rename(moved)
    assert evaluate(moved, task, out) == ([], 0, first)  # the same content at another place
    weights = load_file(moved / "model.safetensors")
    save_file({name: torch.zeros_like(each) for name, each in weights.items()}, moved / "model.safetensors")
    notices, sampled, second = evaluate(moved, task, out)
    (notice,) = notices
    assert "sums: weights changed, so 8 responses are sampled anew" in notice
    assert sampled == 4
    assert second == evaluate(moved, task, None)[2] != first
    kept = (out / "replaced-1" / "transcripts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == first
    assert (out / "replaced-1" / "eval.json").exists()
    assert evaluate(moved, task, out) == ([], 0, second)


def test_only_problems_that_changed_are_sampled_anew(model: Path, tmp_path: Path) -> None:
    answers, out = dict.fromkeys(PROMPTS, "7"), tmp_path / "out"
    _, _, first = evaluate(model, task_of(answers), out)
    assert evaluate(model, task_of({**answers, "2+2=": "4"}), out)[:2] == ([], 1)  # one more
    other = {("6+8=" if prompt == "5+6=" else prompt): answer for prompt, answer in answers.items()}
    notices, sampled, second = evaluate(model, task_of(other), out)
    assert "2 problems changed or are gone, with 4 responses" in notices[0]
    assert sampled == 1
    assert [row for row in second if row["prompt"] != "6+8="] == [
        row for row in first if row["prompt"] != "5+6="
    ]


def test_other_answers_and_another_check_keep_the_completions(model: Path, tmp_path: Path) -> None:
    answers, out = dict.fromkeys(PROMPTS, "x"), tmp_path / "out"
    _, _, first = evaluate(model, task_of(answers), out)
    assert not any(row["correct"] for row in first)
    notices, sampled, second = evaluate(model, task_of({**answers, "3+4=": ""}), out)
    assert notices == [
        "sums: 1 reference answers changed, so 2 responses are judged anew: 2 verdicts differ (2 from wrong to right)"
    ]
    assert sampled == 0
    assert [row["correct"] for row in second] == [True] * 2 + [False] * 6
    assert [row["completion"] for row in second] == [row["completion"] for row in first]
    assert not list(out.glob("replaced-*"))


def test_an_own_tasks_check_is_bound_by_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = (
        "from ctpo.tasks import Problem, Task\n"
        "def problems(split, count, seed): return [Problem(prompt=f'{i}+2=', answer='x', id=str(i)) for i in (3, 4)]\n"
        "task = Task(name='mine', problems=problems, check=lambda c, a: VERDICT)\n"
    )
    mine = Path("mine.py")
    mine.write_text(source.replace("VERDICT", "False"))
    words = ["eval", "embedded", "--task", "mine.py", "--max-tokens", "16", "--show", "0"]
    assert main([*words, "--output", "out"]) == 0
    before = [json.loads(line) for line in Path("out/transcripts.jsonl").read_text().splitlines()]
    mine.write_text(source.replace("VERDICT", "len(c) >= 0"))
    assert main(["eval", "--rejudge", "out"]) == 2  # a directory alone runs no code
    assert "would run the code of the task file mine.py; if you trust it" in capsys.readouterr().err
    assert main(["eval", "--rejudge", "out", "--trust"]) == 0
    printed = capsys.readouterr().out
    assert "mine.py: 3, sample 0: wrong -> right" in printed
    assert "2 responses judged again, 2 verdicts differ; right: 0.0 -> 100.0 per cent" in printed
    after = [json.loads(line) for line in Path("out/transcripts.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in after] == ["right", "right"]
    assert [row["completion"] for row in after] == [row["completion"] for row in before]
    assert json.loads(Path("out/eval.json").read_text())["results"]["mine.py"]["pass@1"] == 1
    mine.write_text(source.replace("VERDICT", "not c or not c[0:0]"))
    assert main([*words, "--output", "out"]) == 0
    printed = capsys.readouterr().out
    assert "mine.py: the check changed, so 2 responses are judged anew: 0 verdicts differ" in printed


def test_an_evaluation_of_an_earlier_version_is_refused_and_can_be_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["eval", "embedded", "--task", "arithmetic", "--limit", "3", "--show", "0", "--output", str(out)]
    assert main(words) == 0
    held = (out / "transcripts.jsonl").read_bytes()
    (out / "identity.json").unlink()
    settings = {"tasks": ["arithmetic"], "samples": 1, "seed": 20_260_508, "model": "m"}
    (out / "settings.json").write_text(json.dumps(settings))
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "holds an evaluation without identity.json, so its model is unknown; choose another" in message
    assert message.count("\n") == 1
    assert main(["eval", "--rejudge", str(out)]) == 0
    assert "3 responses judged again, 0 verdicts differ" in capsys.readouterr().out
    assert (out / "transcripts.jsonl").read_bytes() == held


@pytest.mark.parametrize(
    "content", ["[", "[]", '{"format": 2, "tasks": {}}', '{"format": 1, "tasks": {"a": {}}}']
)
def test_a_damaged_identity_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(UserError, match=r"identity.json is damaged"):
        Folder(tmp_path).read()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "MODEL is missing"),
        (["m", "--rejudge", "."], "--rejudge samples nothing, so it takes no MODEL; drop m"),
        (["--rejudge", "nowhere"], "--rejudge nowhere is not a directory"),
        (["--rejudge", "."], "--rejudge . holds no evaluation"),
    ],
)
def test_mistakes_take_one_line(
    words: list[str],
    part: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *words]) == 2
    printed = capsys.readouterr().err
    assert part in printed
    assert printed.count("\n") == 1


def test_what_responses_depend_on_is_part_of_their_identity() -> None:
    task, sampling, at = get_task("gsm8k"), Sampling(max_new_tokens=8), {"weights": "w", "tokenizer": "t"}
    same = Identity(sampled=sampled_with(task, sampling, at, seed=1, samples=2), judged="")

    def changes(**others: Any) -> list[str]:
        given = {"task": task, "sampling": sampling, "model": at, "seed": 1, "samples": 2, **others}
        return Identity(sampled=sampled_with(**given), judged="").changes(same)

    assert changes() == []
    assert changes(task=replace(task, system="Be brief.")) == ["prompt"]
    assert changes(task=replace(task, tool=None)) == ["tool"]
    assert changes(task=replace(task, tool=PythonTool(max_calls=3))) == ["tool"]
    assert changes(sampling=Sampling(max_new_tokens=9, temperature=0.5)) == ["max_new_tokens", "temperature"]
    assert changes(seed=2, samples=3) == ["seed", "samples"]
    assert changes(model={"endpoint": "http://h/v1", "model": "m"}) == [
        "weights",
        "tokenizer",
        "endpoint",
        "model",
    ]
    # a check of one's own is its file; a shipped one is the source of the judges
    assert judged_with(task) == judged_with(get_task("aime25"))
    assert judged_with(task) != judged_with(replace(task, check=always))


def test_a_shipped_task_is_not_bound_by_files_that_use_its_check(tmp_path: Path) -> None:
    shipped, path = judged_with(get_task("gsm8k")), tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\nfrom ctpo.tasks import get_task\n"
        "task = replace(get_task('gsm8k'), system='Be brief.')\nother = replace(task, examples=())\n"
    )
    assert (
        judged_with(get_task(f"{path}:other")) != shipped
    )  # this loads the file, in which `task` has the check bare
    assert judged_with(get_task("gsm8k")) == shipped


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("config.json", "weights"),
        ("generation_config.json", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("chat_template.jinja", "tokenizer"),
    ],
)
def test_every_file_that_decides_is_part_of_the_models_identity(model: Path, name: str, part: str) -> None:
    before = model_identity(str(model))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_version": "99"}))
    (model / "README.md").write_text("nothing that decides")
    assert model_identity(str(model)) == before
    path = model / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), "new": 1}))
    after = model_identity(str(model))
    assert {key for key in after if after[key] != before[key]} == {part}


SURROGATE = "half \ud83d so \\boxed{2}"


def calling(name: str, arguments: Any) -> dict[str, Any]:
    return {
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}]
    }


@pytest.mark.parametrize(
    ("message", "verdict", "status"),
    [
        ({"content": SURROGATE}, "right", None),
        ({"content": [{"type": "text", "text": "so "}, {"type": "image"}, "\\boxed{2}"]}, "right", None),
        ({"content": None, "reasoning_content": "so \\boxed{2}"}, "no answer", None),
        ({"content": "\\boxed{2}", "reasoning": "\\boxed{3}"}, "right", None),
        ({"content": None}, "no answer", None),
        ({"content": 7, "tool_calls": "x"}, "no answer", None),
        (calling("python", '{"code": "print(\'\ud83d\')"}'), "right", "error"),
        (calling("search", '{"query": 1}'), "right", "error"),
        (calling("python", {"code": "print(2)"}), "right", "ok"),
        ({"tool_calls": ["x"]}, "right", "error"),
    ],
)
def test_odd_answers_of_a_server_are_saved_and_read_back(
    tmp_path: Path, message: dict[str, Any], verdict: str, status: str | None
) -> None:
    def answer(path: str, payload: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return 200, {"data": [{"id": "m"}]}
        replied = payload["messages"][-1]["role"] == "tool"
        return choice(message={"content": "\\boxed{2}"} if replied else {"role": "assistant", **message})

    (tmp_path / "p.jsonl").write_text('{"problem": "1+1 \\ud83d?", "answer": "2"}\n')
    words = ["eval", "m", "--task", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "out")]
    with serving(answer) as (url, requests):
        assert main([*words, "--endpoint", url]) == 0
        asked = len(requests)
        assert main([*words, "--endpoint", url]) == 0
        assert len(requests) == asked + 1  # whether the server is there
    assert requests[1][1]["messages"][-1]["content"] == "1+1 \ufffd?"
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "transcripts.jsonl").read_bytes().splitlines()]
    assert (row["verdict"], row["error"]) == (verdict, None)
    assert [call["status"] for call in row["calls"]] == ([] if status is None else [status])
    (result,) = json.loads((tmp_path / "out" / "eval.json").read_text())["results"].values()
    assert result["tool_failures"] == (status == "error")
    if message.get("content") == SURROGATE:
        assert row["completion"] == SURROGATE
