"""`ctpo theory` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctpo.cli.main import main
from ctpo.lab.theory import FAMILIES, Setup, analyse


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["theory", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "--objective", "ctpo?log_high=0.1", "--objective", "grpo")
    for name in (*FAMILIES, "ctpo?log_high=0.1", "grpo"):
        (line,) = [line for line in shown.splitlines() if line.split()[:1] == [name]]
        assert ("exact" in line.split()[1]) == (name == "sequence")
    assert "least mean squared error: " in shown
    assert max(map(len, shown.splitlines())) <= 160
    table = [line for line in shown.splitlines() if line.startswith((" estimator", " cumulative"))]
    assert all(len(line) <= 80 for line in table)


def test_json_holds_the_analysis(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(output(capsys, "--json", "--seed", "3", "--trajectories", "5", "--family", "token"))
    analysis = analyse(Setup(seed=3).problem(), [FAMILIES["token"]])
    (draw,) = report["draws"]
    (row,) = draw["estimators"]
    assert row["bias"] == analysis.rows[0].bias
    assert row["mean_squared_error"] == {"5": analysis.rows[0].error(5)}
    assert row["term_variance"] == list(analysis.rows[0].term_variance)
    assert draw["log_ratio"]["std"] == list(analysis.spread.std)
    assert report["settings"]["horizon"] == 8


def test_draws(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(output(capsys, "--json", "--draws", "3", "--horizon", "4"))
    assert len(report["draws"]) == 3
    seeds = [Setup(seed=seed, horizon=4).problem() for seed in range(3)]
    biases = [analyse(problem, [FAMILIES["token"]]).rows[0].bias for problem in seeds]
    assert report["average"][0]["bias"] == pytest.approx(sum(biases) / 3)
    shown = output(capsys, "--draws", "3", "--horizon", "4")
    assert "±" in shown
    assert "seeds 0-2" in shown


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_figure(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"theory.{ending}"
    output(capsys, "--horizon", "5", "--figure", str(path))
    content = path.read_bytes()
    if ending == "png":
        from PIL import Image

        image = Image.open(path).convert("RGB")
        assert image.width > 1000
        # The colours of all estimators are in the picture: tab:blue is the first of the cycle, tab:gray the eighth.
        colours = {colour for _, colour in image.getcolors(2**24) or []}
        assert {(31, 119, 180), (127, 127, 127)} <= colours
    else:
        assert content.startswith(b"<?xml")


@pytest.fixture
def tables() -> dict[str, Any]:
    problem = Setup(horizon=3, seed=7).problem()
    return {
        "behaviour": problem.behaviour.logits.tolist(),
        "target": problem.target.logits.tolist(),
        "reward": problem.reward.tolist(),
        "horizon": 3,
    }


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_given_logits(
    ending: str, tables: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with the problem that seed 7 draws gives the same figures as the seed."""
    path = tmp_path / f"tables.{ending}"
    if ending == "json":
        path.write_text(json.dumps(tables))
    else:
        np.savez(path, **{name: np.array(value) for name, value in tables.items()})
    given = json.loads(output(capsys, "--json", "--policy", str(path)))
    drawn = json.loads(output(capsys, "--json", "--horizon", "3", "--seed", "7"))
    assert given["draws"] == drawn["draws"]


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["theory", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("ctpo: ")
    return captured.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--vocab 4 --horizon 11", ["4^11", "1,048,576", "horizon=10"]),
        ("--vocab 2 --horizon 1000000000", ["horizon=1000000000", "use horizon=20"]),
        ("--vocab 3000000 --horizon 1", ["vocab=3000000", "at most 1,048,576"]),
        ("--vocab 1", ["vocab=1", "2 or more"]),
        ("--horizon 0", ["horizon=0", "1 or more"]),
        ("--distance -1", ["distance=-1.0", "0 or more"]),
        ("--distance nan", ["distance=nan"]),
        ("--distance 1e200", ["distance=1e+200"]),
        ("--spread inf", ["spread=inf"]),
        ("--baseline inf", ["baseline=inf"]),
        ("--seed -1", ["seed=-1"]),
        ("--draws 0", ["--draws 0"]),
        ("--trajectories 0", ["--trajectories 0"]),
        ("--family cumlative", ["'cumlative' is not known", "did you mean 'cumulative'?"]),
        ("--family token --family token", ["'token' is given twice"]),
        ("--family sequence --objective sequence", ["'sequence' is given twice"]),
        ("--family none", ["--objective"]),
        ("--objective ctpoo", ["'ctpoo'", "'ctpo'"]),
        ("--objective ctpo?log_low=-1", ["low", "-1"]),
        ("--sharing lstm", ["sharing='lstm'", "tabular"]),
        ("--policy evil", ["policy='evil'", "adversarial"]),
        ("--policy adversarial --against none", ["'none' is not known"]),
        ("--policy adversarial --horizon 18", ["65,536"]),
        ("--reward nice", ["reward='nice'", "binary"]),
        ("--advantage critic", ["advantage='critic'", "terminal"]),
        ("--figure out.xyz --horizon 2", ["out.xyz", ".png"]),
        ("--figure nowhere/out.png --horizon 2", ["nowhere/out.png", "cannot be written"]),
        ("--policy nowhere.json", ["nowhere.json cannot be read"]),
        ("--policy .json", ["policy='.json'"]),
    ],
)
def test_bad_words(
    words: str,
    parts: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(capsys, *words.split())
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"target": None}, ["target", "not a table of numbers"]),
        ({"target": [[0.0, 1.0]]}, ["behaviour is (7, 2) and target (1, 2)"]),
        ({"target": [[0.0, 1.0], [0.0]]}, ["target", "not a table"]),
        ({"reward": [1.0]}, ["reward has 1 values", "8"]),
        ({"horizon": 2}, ["(7, 2)", "3 rows of 2"]),
        ({"horizon": 2.5}, ["horizon 2.5"]),
        ({"logits": []}, ["'logits' is unknown"]),
        ({"behaviour": [[float("inf"), 0.0]] * 7}, ["not finite"]),
        ({"reward": [float("nan")] * 8}, ["not finite"]),
    ],
)
def test_bad_files(
    change: dict[str, Any],
    parts: list[str],
    tables: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "tables.json"
    path.write_text(json.dumps({**tables, **change}))
    line = complaint(capsys, "--policy", str(path))
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", b"{"), ("a.json", b"\xff"), ("a.json", b"[1]"), ("a.npz", b"x")]
)
def test_files_of_another_kind(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert "it should hold behaviour and target" in complaint(capsys, "--policy", str(tmp_path / name))


def test_names_survive_many_columns(capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "--horizon", "3", "--draws", "2", "--trajectories", *"1 2 3 4 5 6 7 8".split())
    assert any(line.startswith("prefix-gradient ") for line in shown.splitlines())
