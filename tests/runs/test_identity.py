"""What makes two runs the same run."""

from __future__ import annotations

import subprocess
import sys

import torch

from ctpo.runs.identity import deciding_settings, describe_model


def test_settings_that_change_nothing_are_left_out() -> None:
    settings = {"seed": 1, "threads": 2, "output_dir": "runs/a", "transcripts": 4, "save_steps": 3}
    assert deciding_settings(settings) == {"seed": 1, "threads": 2}
    assert deciding_settings(settings, {"seed"}) == {
        name: settings[name] for name in settings if name != "seed"
    }


def test_models_differ_by_names_and_shapes() -> None:
    one, wider = torch.nn.Linear(3, 2), torch.nn.Linear(3, 4)
    assert describe_model(one) == describe_model(torch.nn.Linear(3, 2))
    assert describe_model(one)["parameters"] == 8
    assert describe_model(one)["shapes"] != describe_model(wider)["shapes"]
    assert describe_model(one)["shapes"] != describe_model(torch.nn.Sequential(one))["shapes"]


def test_what_a_run_left_is_read_without_torch() -> None:
    """A report must start fast."""
    rooms = (
        "ctpo.report.page, ctpo.report.drawing, ctpo.runs.checkpoints, ctpo.runs.identity, ctpo.runs.scores"
    )
    code = (
        f"import sys, {rooms}; print(*{{'torch', 'matplotlib', 'numpy', 'safetensors'}} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
