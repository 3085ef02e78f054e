"""`ctpo eval --endpoint` against a real model behind a real HTTP server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rollout.served import choice, model_behind, serving

from ctpo.cli.main import main

WORDS = ["--task", "arithmetic", "--limit", "6", "--temperature", "0", "--show", "0"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]


def test_an_endpoint_gives_what_the_same_model_gives_in_process(
    embedded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(model_behind(*embedded)) as (url, requests):
        assert main(["eval", "tiny", "--endpoint", url, *WORDS, "--output", str(tmp_path / "served")]) == 0
        asked = len(requests)
        assert (
            main(["eval", "tiny", "--endpoint", url + "/", *WORDS, "--output", str(tmp_path / "served")]) == 0
        )
        assert len(requests) == asked + 1  # the second time nothing but whether the server is there
    assert main(["eval", "embedded", *WORDS, "--output", str(tmp_path / "here")]) == 0
    served, here = rows(tmp_path / "served"), rows(tmp_path / "here")
    assert served == here
    assert sum(bool(row["calls"]) for row in here) == 6
    held = json.loads((tmp_path / "served" / "eval.json").read_text())
    assert held["endpoint"].startswith(url)
    assert "api_key" not in held


def test_failed_requests_are_counted_and_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"on": True}

    def answer(path: str, payload: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return 404, {}  # a gateway that does not list what it has
        if broken["on"] and payload.get("seed", 1) % 5 == 0:
            return 400, {"error": "no"}
        return choice(text="=7", tokens=(3, 2))

    with serving(answer) as (url, requests):
        words = [
            "eval",
            "m",
            "--endpoint",
            url,
            *WORDS,
            "--seed",
            "10",
            "--concurrency",
            "2",
            "--batch-size",
            "3",
        ]
        assert main([*words, "--output", str(tmp_path)]) == 0
        assert "2 responses failed and count as unsolved" in capsys.readouterr().out
        assert [row["error"] for row in rows(tmp_path)] == [
            "HTTP 400: no",
            None,
            None,
            None,
            None,
            "HTTP 400: no",
        ]
        broken["on"] = False
        requests.clear()
        assert main([*words, "--output", str(tmp_path)]) == 0
    assert "failed" not in capsys.readouterr().out
    assert [row["error"] for row in rows(tmp_path)] == [None] * 6
    assert len({row["id"] for row in rows(tmp_path)}) == 6


def test_what_exceeds_the_servers_context_is_counted_and_not_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = {"message": "This model's maximum context length is 64 tokens. However, you requested 80."}
    told: dict[str, Any] = {"for": "long"}

    def answer(path: str, payload: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return 200, {"data": [{"id": "m"}]}
        if told["for"] in payload["messages"][-1]["content"]:
            return 400, {"error": full}
        if len(payload["messages"]) == 2 and "work" in payload["messages"][-1]["content"]:
            return choice(message={"content": "```python\nprint('long')"})
        return choice(message={"content": "The answer is 1."})

    prompts = ("long one", "short one", "work one")
    lines = [json.dumps({"problem": prompt, "answer": "1"}) for prompt in prompts]
    (tmp_path / "f.jsonl").write_text("\n".join(lines))
    with serving(answer) as (url, requests):
        words = ["eval", "m", "--endpoint", url, "--task", f"{tmp_path}/f.jsonl?tool=fenced", "--show", "0"]
        assert main([*words, "--output", str(tmp_path / "out")]) == 0
        assert "1 problems exceed the model's context and count as unsolved" in capsys.readouterr().out
        held = rows(tmp_path / "out")
        assert [(row["too_long"], row["error"]) for row in held] == [
            (True, None),
            (False, None),
            (False, None),
        ]
        assert (held[2]["finished"], len(held[2]["calls"])) == (False, 1)
        asked = len(requests)
        assert main([*words, "--output", str(tmp_path / "out")]) == 0
        assert len(requests) == asked + 1
        told["for"] = ""
        assert main(words) == 2
    assert "refuses every request at problem 1 of task 'f' (HTTP 400: This model's" in capsys.readouterr().err


def test_a_server_that_dies_ends_the_run_in_one_line_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alive = {"on": True}

    def answer(path: str, payload: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return 200, {"data": [{"id": "m"}]}
        alive["asked"] = alive.get("asked", 0) + 1
        return choice(text="=7", tokens=(3, 2)) if alive["on"] and alive["asked"] <= 3 else (400, {})

    with serving(answer) as (url, _):
        words = ["eval", "m", "--endpoint", url, *WORDS, "--batch-size", "3", "--output", str(tmp_path)]
        assert main(words) == 2
        assert "refuses every request at problem 4 of task 'arithmetic' (HTTP 400" in capsys.readouterr().err
        assert len(rows(tmp_path)) == 3
        alive["asked"] = 0
        assert main(words) == 0
    assert len(rows(tmp_path)) == 6


def test_the_judges_account_is_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"a": "\\boxed{2}", "b": "dunno", "c": "\\boxed{3}", "d": "\\boxed{\\frac{1}{}+}"}
    problems = [{"problem": name, "answer": "2" if name != "d" else "\\frac{1}{3}"} for name in said]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))

    def answer(path: str, payload: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return 200, {"data": [{"id": "m"}]}
        return choice(message={"content": said[payload["messages"][-1]["content"]]})

    task = f"{tmp_path / 'f.jsonl'}?tool=none"
    with serving(answer) as (url, _):
        words = ["eval", "m", "--endpoint", url, "--task", task, "--output", str(tmp_path / "out")]
        assert main([*words, "--samples", "2"]) == 0
    verdicts = [row["verdict"] for row in rows(tmp_path / "out")][::2]
    assert verdicts[:3] == ["right", "no answer", "wrong"]
    assert verdicts[3] in ("unparsable", "wrong")
    (figures,) = json.loads((tmp_path / "out" / "eval.json").read_text())["results"].values()
    assert figures["verdicts"]["no answer"] == 2
    printed = capsys.readouterr().out
    assert "2 no answer" in printed
    assert "the 2 samples of each problem are identical; the server seems not to sample" in printed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1"], "endpoint http://127.0.0.1:9/v1 cannot be reached"),
        (["--endpoint", "127.0.0.1:9"], "is not a URL"),
        (
            ["--endpoint", "http://h/v1", "--dtype", "float32"],
            "--dtype float32 has no effect with --endpoint",
        ),
        (["--endpoint", "http://h/v1", "--concurrency", "0"], "--concurrency 0 is too small"),
        (["--endpoint", "http://h/v1", "--request-timeout", "0"], "--request-timeout 0.0 is out of range"),
        (
            ["--endpoint", "http://h/v1", "--api-key-env", "NO_SUCH"],
            "--api-key-env NO_SUCH: that variable is not",
        ),
    ],
)
def test_mistakes_take_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "m", *words]) == 2
    printed = capsys.readouterr().err
    assert part in printed
    assert printed.count("\n") == 1
