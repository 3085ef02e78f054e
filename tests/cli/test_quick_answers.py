"""Mistakes, help and plain questions are answered before torch, transformers or TRL are imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "trl", "scipy.stats", "matplotlib"}
ANSWERS = [
    ("", 0, "first steps:"),
    ("--help", 0, "first steps:"),
    ("--version", 0, "ctpo "),
    ("fly", 2, "'fly'"),
    ("train --help", 0, "rollout_batches"),
    ("train learnin_rate=1", 2, "did you mean 'learning_rate'?"),
    ("train learning_rate=fast", 2, "learning_rate='fast' is not of type float"),
    ("train seed=-1", 2, "seed=-1 is out of range"),
    ("train num_generations=7", 2, "num_generations=7"),
    ("train objective=ctpoo", 2, "did you mean 'ctpo'?"),
    ("train objective_kwargs.hihg=1", 2, "did you mean 'log_high'?"),
    ("train task=arithmetics", 2, "did you mean 'arithmetic'?"),
    ("train --resume run learnin_rate=1", 2, "did you mean 'learning_rate'?"),
    ("train --show objective=grpo", 0, "objective: grpo"),
    ("train --show --resume run seed=3", 0, "seed: 3"),
    ("eval embedded --task arithmetics", 2, "did you mean 'arithmetic'?"),
    ("theory --objective ctpoo", 2, "did you mean 'ctpo'?"),
    ("fidelity --help", 0, "BEHAVIOUR"),
    ("fidelity embedded", 2, "give BEHAVIOUR and TARGET"),
    ("fidelity embedded nowhere", 2, "nowhere"),
    ("fidelity embedded embedded --objective ctpoo", 2, "did you mean 'ctpo'?"),
    ("fidelity embedded embedded learnin_rate=1", 2, "did you mean 'learning_rate'?"),
    ("compare study.yaml --status", 0, "no run"),
    ("compare typo.yaml", 2, "'gpro' is unknown"),
    ("compare typo.yaml --status", 2, "'gpro' is unknown"),
]
"""Words after `ctpo`, the exit code, and a part of what is printed."""
PROGRAM = f"""
import contextlib, io, json, sys
from ctpo.cli.main import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            code = main(words.split())
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, out.getvalue(), sorted({HEAVY!r} & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, list[str]]]:
    """The answers to all of them and what was imported by then, in a fresh interpreter."""
    here = tmp_path_factory.mktemp("answers")
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text("objective: ctpo\n")
    (here / "study.yaml").write_text("objectives: {ctpo: {}, grpo: {}}\nseeds: {test: [0, 1]}\n")
    (here / "typo.yaml").write_text("objectives: {ctpo: {}, gpro: {}}\nseeds: {test: [0, 1]}\n")
    command = [sys.executable, "-c", PROGRAM, json.dumps([words for words, *_ in ANSWERS])]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=here, check=True)
    lines = (json.loads(line) for line in ran.stdout.splitlines())
    return [(code, printed, heavy) for code, printed, heavy in lines]


@pytest.mark.parametrize("row", range(len(ANSWERS)), ids=[words for words, *_ in ANSWERS])
def test_the_answer_comes_before_heavy_imports(answers: list[tuple[int, str, list[str]]], row: int) -> None:
    _, expected, part = ANSWERS[row]
    code, printed, heavy = answers[row]
    assert (code, heavy) == (expected, [])
    assert part in printed
