"""The embedded default: chains of sums that a tiny model learns to hand to Python."""

from __future__ import annotations

from pathlib import Path

from ctpo.tasks.arithmetic.task import ARITHMETIC

__all__ = ["ARITHMETIC", "model_path"]


def model_path() -> Path:
    """Return the folder of the shipped model and tokenizer, for `from_pretrained`."""
    return Path(__file__).parent / "model"
