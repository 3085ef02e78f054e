"""Figures and settings as words for a reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctpo.runs.means import Mean


def percent(value: float) -> str:
    """Return a share in percent: 0.9561 is "95.6 %"."""
    return f"{100 * value:.1f} %"


def probability(value: float | None) -> str:
    """Return a p-value with three decimals, or in scientific notation below 0.001; "–" for None."""
    return "–" if value is None else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Return a time as "55 s", "12 min" or "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def mean_and_error(mean: Mean, sign: str = "") -> str:
    """Return a mean as "0.879 ± 0.015"; with `sign="+"`, positive means get a plus."""
    error = " (one seed)" if mean.stderr is None else f" ± {mean.stderr:.3f}"
    return f"{mean.value:{sign}.3f}{error}"


def settings_in_words(settings: Any) -> str:
    """Return settings as "learning_rate 0.0003, high 0.1"; "–" if there are none. Nested ones are unfolded."""
    if not isinstance(settings, Mapping) or not settings:
        return "–"
    pairs = [
        pair
        for key, value in settings.items()
        for pair in (value.items() if isinstance(value, Mapping) else [(key, value)])
    ]
    return ", ".join(f"{name} {setting(value)}" for name, value in pairs)


def setting(value: Any) -> str:
    """Return the value of a setting; "–" for None."""
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
