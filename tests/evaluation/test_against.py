"""One evaluation against another: differences are paired by problem."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from ctpo.cli.main import main

WORDS = ["eval", "embedded", "--task", "arithmetic", "--show", "0"]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluations") / "before"
    assert main([*WORDS, "--limit", "40", "--samples", "2", "--output", str(out)]) == 0
    return out


def scores(folder: Path) -> dict[str, float]:
    """The share of right samples of each problem, by its prompt."""
    rows = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]
    return {
        prompt: statistics.mean(row["correct"] for row in rows if row["prompt"] == prompt)
        for prompt in {row["prompt"] for row in rows}
    }


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "eval.json").read_text())["results"]["arithmetic"]["against"]
    return found


def test_the_difference_is_paired_by_problem(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = tmp_path / "after"
    words = [*WORDS, "--limit", "30", "--temperature", "0", "--output", str(after), "--against", str(before)]
    assert main(words) == 0
    mine, other = scores(after), scores(before)
    gains = [mine[prompt] - other[prompt] for prompt in mine]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    assert len(gains) == 30
    assert min(better, worse) > 0
    mean, error = statistics.mean(gains), statistics.stdev(gains) / 30**0.5
    assert figures(after) == {
        "directory": str(before),
        "problems": 30,
        "mean": pytest.approx(mean),
        "stderr": pytest.approx(error),
        "better": better,
        "worse": worse,
    }
    line = (
        f"arithmetic: {100 * mean:+.1f} ± {100 * error:.1f} points against {before}, paired over 30 problems: "
        f"{better} better, {worse} worse"
    )
    assert line in capsys.readouterr().out
    assert main(["eval", "--rejudge", str(after), "--against", str(before)]) == 0
    assert line in capsys.readouterr().out


def test_an_evaluation_against_itself_differs_nowhere(before: Path, tmp_path: Path) -> None:
    same = shutil.copytree(before, tmp_path / "same")
    assert main(["eval", "--rejudge", str(same), "--against", str(before)]) == 0
    expected = {"directory": str(before), "problems": 40, "mean": 0, "stderr": 0, "better": 0, "worse": 0}
    assert figures(same) == expected


def test_another_check_and_other_answers_are_told(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stored verdicts count as they are, so the user must know what they stand for."""
    other, same = shutil.copytree(before, tmp_path / "other"), shutil.copytree(before, tmp_path / "same")
    rows = [json.loads(line) for line in (other / "transcripts.jsonl").read_text().splitlines()]
    rows[3]["answer"] = "another"
    (other / "transcripts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = f"judge it again: ctpo eval --rejudge {other}"
    assert main(["eval", "--rejudge", str(same), "--against", str(other)]) == 0
    assert (
        f"arithmetic: {other} has other reference answers for 1 of the problems; {again}"
        in capsys.readouterr().out
    )
    identity = json.loads((other / "identity.json").read_text())
    identity["tasks"]["arithmetic"]["judged"] = "another check"
    (other / "identity.json").write_text(json.dumps(identity))
    assert main(["eval", "--rejudge", str(same), "--against", str(other)]) == 0
    assert f"arithmetic: another check has judged {other}; {again}" in capsys.readouterr().out


def test_fewer_problems_in_common_are_told(
    before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A last line that is cut short is what a kill leaves, and the others still pair."""
    cut, same = shutil.copytree(before, tmp_path / "cut"), shutil.copytree(before, tmp_path / "same")
    (cut / "transcripts.jsonl").write_bytes((before / "transcripts.jsonl").read_bytes()[:-10])
    assert main(["eval", "--rejudge", str(same), "--against", str(cut)]) == 0
    assert "paired over 39 of 40 problems: 0 better, 0 worse" in capsys.readouterr().out


def test_mistakes_take_one_line(before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for against, more, message in (
        ("nowhere", [], "--against nowhere is not a directory; give the --output directory of an evaluation"),
        (str(tmp_path), [], f"--against {tmp_path} holds no evaluation; give the --output directory of one"),
        (
            str(before),
            ["--task", "chain-sums"],
            f"--against {before} holds arithmetic, not chain-sums; give an evaluation of the same tasks",
        ),
    ):
        assert main([*WORDS, *more, "--against", against]) == 2
        assert capsys.readouterr().err.strip().endswith(message)
    other_problems = ["--limit", "2", "--seed", "1", "--against", str(before)]
    assert main([*WORDS, *other_problems]) == 2
    message = f"--against {before} has no problem in common with arithmetic; evaluate both on the same ones"
    assert capsys.readouterr().err.strip().endswith(message)
    assert main(["eval", "--rejudge", str(before), "--against", str(before)]) == 2
    assert "is the evaluation itself; give the directory of another" in capsys.readouterr().err
    damaged = shutil.copytree(before, tmp_path / "damaged")
    lines = (before / "transcripts.jsonl").read_bytes().splitlines(keepends=True)
    (damaged / "transcripts.jsonl").write_bytes(b"".join([*lines[:6], lines[6][:9] + b"\n", *lines[7:]]))
    for words in ([*WORDS, "--against"], ["eval", "--rejudge"]):
        assert main([*words, str(damaged)]) == 2
        assert "transcripts.jsonl line 7 is damaged; restore the file" in capsys.readouterr().err
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "identity.json").write_bytes((before / "identity.json").read_bytes())
    assert main([*WORDS, "--against", str(cut)]) == 2
    assert "holds no complete responses to arithmetic; continue it with --output" in capsys.readouterr().err
