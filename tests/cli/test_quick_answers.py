"""Mistakes, help and plain questions are answered before torch, transformers or TRL are imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "trl", "scipy.stats", "matplotlib"}
PROGRAM = f"""
import sys
from ctpo.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(code, *sorted({HEAVY!r} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
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
        ("compare study.yaml --status", 0, "no run"),
        ("compare typo.yaml", 2, "'gpro' is unknown"),
        ("compare typo.yaml --status", 2, "'gpro' is unknown"),
    ],
)
def test_the_answer_comes_before_heavy_imports(tmp_path: Path, words: str, code: int, shown: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("objective: ctpo\n")
    (tmp_path / "study.yaml").write_text("objectives: {ctpo: {}, grpo: {}}\nseeds: {test: [0, 1]}\n")
    (tmp_path / "typo.yaml").write_text("objectives: {ctpo: {}, gpro: {}}\nseeds: {test: [0, 1]}\n")
    command = [sys.executable, "-c", PROGRAM, *words.split()]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert shown in ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == str(code)
