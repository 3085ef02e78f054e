"""Training with TRL: settings, the trainer, and whole runs with their records."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ctpo.extras import require

if TYPE_CHECKING:
    from ctpo.training.config.config import CTPOConfig
    from ctpo.training.run.train import train
    from ctpo.training.step.trainer import CTPOTrainer

__all__ = ["CTPOConfig", "CTPOTrainer", "train"]

_HOMES = {"CTPOConfig": "config.config", "CTPOTrainer": "step.trainer", "train": "run.train"}


def __getattr__(name: str) -> Any:
    """Import on first use, because TRL takes seconds to load and error messages should not wait for it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require(
        f"ctpo.training.{name}", "train", "transformers", "trl", "accelerate", "datasets", "pydantic", "yaml"
    )
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
