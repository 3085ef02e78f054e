"""`ctpo fidelity` on the embedded model: from two models to figures, and on from what was kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ctpo.cli.main import main
from ctpo.evaluation.model import load_model
from ctpo.tasks.arithmetic import model_path


def test_measures_a_pair_and_goes_on_from_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_model(str(model_path()))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.02)
    model.save_pretrained(tmp_path / "later")
    tokenizer.save_pretrained(tmp_path / "later")
    words = ["fidelity", "embedded", str(tmp_path / "later"), "threads=1", "--objective", "ctpo", "--json"]
    words += ["--problems", "6", "--batch-size", "16", "--blocks", "3", "--directions", "2"]
    words += ["--output", str(tmp_path / "out"), "--figure", str(tmp_path / "figure.svg")]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["sketch"]["error"] < 1e-4
    assert first["sketch"]["engine_gap"] < 1e-3
    assert first["drift"]["log_ratio_std"] > 0
    assert (tmp_path / "figure.svg").is_file()
    responses = tmp_path / "out" / "responses-behaviour-000.npz"
    kept = responses.stat().st_mtime_ns
    for name in ("direction-002.npz", "fidelity.json"):
        (tmp_path / "out" / name).unlink()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert responses.stat().st_mtime_ns == kept
    assert main([*words, "--seed", "1"]) == 2
    assert "holds another measurement" in capsys.readouterr().err
    assert main(["fidelity", "embedded", "embedded", "--output", str(tmp_path / "same")]) == 2
    assert "the same weights" in capsys.readouterr().err
