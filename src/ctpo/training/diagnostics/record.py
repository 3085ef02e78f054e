"""A rollout batch's profile as a line of `profile.jsonl`, and as the few figures that records and loggers get."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ctpo.objectives import Objective, calibrate
from ctpo.objectives.trust_regions import Bases, Both
from ctpo.training.diagnostics.profile import CELL_EDGES, GAIN, HARM, ProfileSums

_HIGH, _DUAL, _LOW = 1, 2, 3  # rows of ProfileSums.clipped


def profile_line(sums: ProfileSums, objective: Objective) -> dict[str, Any]:
    """The figures of one rollout batch by position, as docs/diagnostics.md describes; None where a bin is empty."""
    count = sums.count
    t, c, cc, x, xx, slope, removed = sums.moments
    return {
        "edge": sums.edges,
        "count": _whole(count),
        "position_mean": _share(t, count),
        "high": _whole(sums.clipped[_HIGH]),
        "low": _whole(sums.clipped[_LOW]),
        "dual": _whole(sums.clipped[_DUAL]),
        "log_ratio_mean": _share(c, count),
        "log_ratio_std": _std(c, cc, count),
        "weight_mean": _share(x, count),
        "weight_std": _std(x, xx, count),
        "gradient_removed": _share(removed, slope),
        **_spread(sums),
        "histogram": {"edge": CELL_EDGES, "count": _whole(sums.weights)},
        "log_ratio_histogram": {
            "edge": CELL_EDGES,
            "gain": [_whole(row) if row.any() else [] for row in sums.cells[GAIN]],
            "harm": [_whole(row) if row.any() else [] for row in sums.cells[HARM]],
        },
        "band": _band(objective, _share(t, count)),
    }


def profile_figures(sums: ProfileSums) -> dict[str, float]:
    """The share of the gradient that clipping removed over all positions, and the fitted power law of the spread."""
    slope, removed = sums.moments[5].sum(), sums.moments[6].sum()
    spread = {name: value for name, value in _spread(sums).items() if value is not None}
    return {"gradient_removed": float(removed / slope) if slope > 0 else 0.0, **spread}


def as_profile(sums: ProfileSums) -> dict[str, Tensor]:
    """The columns that `ctpo.objectives.calibrate` reads."""
    count = sums.count.clamp(min=1)
    t, c, cc = sums.moments[:3]
    mean = c / count
    return {
        "edge": count.new_tensor(sums.edges),
        "count": sums.count,
        "cell_edge": count.new_tensor(CELL_EDGES),
        "gain": sums.cells[GAIN],
        "harm": sums.cells[HARM],
        "position_mean": t / count,
        "log_ratio_mean": mean,
        "log_ratio_std": (cc / count - mean.square()).clamp(min=0).sqrt(),
    }


def _spread(sums: ProfileSums) -> dict[str, float | None]:
    """The fitted scale and power of the spread; None where there is nothing to fit."""
    names = ("scale", "power", "power_stderr")
    columns = ("edge", "count", "position_mean", "log_ratio_mean", "log_ratio_std")
    profile = as_profile(sums)
    try:
        fit = calibrate({name: profile[name] for name in columns})
    except ValueError:  # too few bins, or a policy that has not moved
        return {f"spread_{name}": None for name in names}
    return {f"spread_{name}": _finite(getattr(fit, name)) for name in names}


def _band(objective: Objective, positions: list[float | None]) -> dict[str, Any] | None:
    """The trust region's limits on the log ratio at these positions, in nats; None if it has no fixed limits."""
    region = objective.trust_region
    while isinstance(region, Both):  # the gate beside it has no limits on the log ratio that weighs
        region = region.region
    bases = getattr(region, "bases", None)
    if not isinstance(bases, Bases) or getattr(region, "statistic", None) is not None:
        return None

    def at(base: float | None) -> list[float | None] | None:
        if base is None or math.isinf(base):
            return None
        return [None if t is None else base * t**bases.power for t in positions]

    band = {"low": at(bases.lower), "high": at(bases.upper), "dual": at(bases.dual)}
    return band if any(limits is not None for limits in band.values()) else None


def _whole(values: Tensor) -> list[int]:
    return [round(value) for value in values.tolist()]


def _share(part: Tensor, whole: Tensor) -> list[float | None]:
    return [_finite(a / b) if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]


def _std(total: Tensor, squares: Tensor, count: Tensor) -> list[float | None]:
    """The population standard deviation of each bin, from sums of values and of squares."""
    rows = zip(total.tolist(), squares.tolist(), count.tolist(), strict=True)
    return [_finite(math.sqrt(max(q / n - (s / n) ** 2, 0.0))) if n else None for s, q, n in rows]


def _finite(value: float) -> float | None:
    """The value to seven digits, as many as a float32 has; None if it is not finite."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
