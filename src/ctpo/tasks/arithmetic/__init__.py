"""The embedded task: chains of sums, which a tiny model learns to compute with Python."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ctpo.tasks.arithmetic.task import ARITHMETIC

__all__ = ["ARITHMETIC", "SHIPPED_MODELS", "model_location", "model_path"]

SHIPPED_MODELS: Final = {"embedded": "model", "embedded-worksheet": "worksheet_model"}
"""The names of the models that ship with the package, for the tasks arithmetic and worksheet, and their folders."""


def model_path(name: str = "embedded") -> Path:
    """The folder of a shipped model and its tokenizer, for `from_pretrained`.

    Example:
        (model_path() / "config.json").exists()  # True
    """
    return Path(__file__).parent / SHIPPED_MODELS[name]


def model_location(model: str) -> str:
    """The folder of the shipped model with this name, or else the name itself: a directory or a hub id.

    Example:
        model_location("Qwen/Qwen3-0.6B")  # "Qwen/Qwen3-0.6B"
    """
    return str(model_path(model)) if model in SHIPPED_MODELS else model
