"""Off-policy reinforcement learning for language models with cumulative-token importance ratios.

The objectives need torch alone: `from ctpo.objectives import preset`. The trainer needs the extra `[train]`:
`from ctpo import CTPOConfig, CTPOTrainer`. It is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctpo.version import __version__

if TYPE_CHECKING:
    from ctpo.training import CTPOConfig, CTPOTrainer

__all__ = ["CTPOConfig", "CTPOTrainer", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("CTPOConfig", "CTPOTrainer"):
        import ctpo.training

        return getattr(ctpo.training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
