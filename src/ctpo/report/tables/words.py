"""Figures as a reader sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctpo.runs.means import Mean


def percent(value: float) -> str:
    """0.9561 as 95.6 %."""
    return f"{100 * value:.1f} %"


def probability(value: float | None) -> str:
    """A p-value."""
    return "–" if value is None else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """55 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def mean_told(found: Mean, sign: str = "") -> str:
    """0.879 ± 0.015."""
    return f"{found.value:{sign}.3f}" + (" (one seed)" if found.stderr is None else f" ± {found.stderr:.3f}")


def setting_words(told: Any) -> str:
    """What a comparison chose, `learning_rate 0.0003, high 0.1`."""
    if not isinstance(told, Mapping) or not told:
        return "–"
    inner = [
        (key, value.items() if isinstance(value, Mapping) else [(key, value)]) for key, value in told.items()
    ]
    return ", ".join(f"{name} {setting(value)}" for _, pairs in inner for name, value in pairs)


def setting(value: Any) -> str:
    """A value of a recipe."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
