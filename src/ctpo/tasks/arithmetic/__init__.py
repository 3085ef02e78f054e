"""The embedded task: chains of sums, which a tiny model learns to compute with Python."""

from __future__ import annotations

from pathlib import Path

from ctpo.tasks.arithmetic.task import ARITHMETIC

__all__ = ["ARITHMETIC", "model_path"]


def model_path(task: str = "arithmetic") -> Path:
    """The folder of the model that ships for this task, "arithmetic" or "worksheet", for `from_pretrained`."""
    return Path(__file__).parent / {"arithmetic": "model", "worksheet": "worksheet_model"}[task]
