"""A rollout batch's profile as a line of `profile.jsonl`, and as the few figures that records and loggers get."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives import Objective, calibrate
from ctpo.objectives.trust_regions import Bases, Both
from ctpo.training.diagnostics.gradients import GRADIENT_FIGURES
from ctpo.training.diagnostics.profile import (
    CELL_EDGES,
    GAIN,
    HARM,
    SPLIT,
    ProfileSums,
    measured_positions,
)

_COLUMNS: Final = (
    "edge",
    "count",
    "position_mean",
    "log_ratio_mean",
    "log_ratio_std",
    "spread",
    "spread_count",
)


def profile_line(sums: ProfileSums, objective: Objective) -> dict[str, Any]:
    """The figures of one rollout batch by position; None where a bin is empty (docs/reference/diagnostics.md)."""
    count, profile = sums.count, as_profile(sums)
    return {
        "edge": sums.edges,
        "count": _whole(count),
        "position_mean": _share(sums.row("position"), count),
        **{name: _whole(sums.row(name)) for name in ("high", "low", "dual")},
        "gain_count": _whole(sums.row("gain")),
        **{name: _whole(sums.row(name)) for name in ("gain_clipped", "harm_clipped")},
        "log_ratio_mean": _share(sums.row("log_ratio"), count),
        "log_ratio_std": _std(sums.row("log_ratio"), sums.row("log_ratio_squared"), count),
        "spread": _where(profile["spread"], profile["spread_count"]),
        "spread_count": [_finite(value) for value in profile["spread_count"].tolist()],
        "weight_mean": _share(sums.row("log_weight"), count),
        "weight_std": _std(sums.row("log_weight"), sums.row("log_weight_squared"), count),
        "ess": _share(sums.effective[0], count),
        "gradient_ess": _share(sums.effective[1], count),
        **{name: _share(*parts) for name, parts in _removed(sums).items()},
        **{f"gradient_{name}": _share(sums.row(name), count) for name in SPLIT},
        **_spread(sums),
        "histogram": {"edge": CELL_EDGES, "count": _whole(sums.weights)},
        "log_ratio_histogram": {
            "edge": CELL_EDGES,
            "gain": [_whole(row) if row.any() else [] for row in sums.cells[GAIN]],
            "harm": [_whole(row) if row.any() else [] for row in sums.cells[HARM]],
        },
        "band": _band(objective, _share(sums.row("position"), count)),
        "updates": _updates(sums),
    }


def profile_figures(sums: ProfileSums) -> dict[str, float]:
    """The figures of a rollout batch over all positions. Those that cannot be had are left out."""
    tokens = sums.count.sum()
    parts = {
        **{name: (part.sum(), whole.sum()) for name, (part, whole) in _removed(sums).items()},
        "gradient_ess": (_effective(sums, "left").sum(), tokens),
        **{f"gradient_{name}": (sums.row(name).sum(), tokens) for name in SPLIT},
    }
    figures = {name: float(part / whole) if whole > 0 else 0.0 for name, (part, whole) in parts.items()}
    norms, mean, noise = sums.updates[:, -GRADIENT_FIGURES:].unbind(dim=1)
    norms = norms[norms.isfinite()]
    if len(norms):
        figures |= {"gradient_norm_mean": float(norms.mean()), "gradient_norm_max": float(norms.max())}
    figures |= _noise(mean, noise)
    spread = {name: value for name, value in _spread(sums).items() if value is not None}
    return {**{name: value for name, value in figures.items() if math.isfinite(value)}, **spread}


def as_profile(sums: ProfileSums) -> dict[str, Tensor]:
    """The columns that `ctpo.objectives.calibrate` reads."""
    count = sums.count.clamp(min=1)
    mean = sums.row("log_ratio") / count
    around, freedom = sums.within
    measured = (measured_positions(sums.edges) > 0).sum(dim=1).to(freedom)
    widths = count.new_tensor(sums.edges).diff(prepend=count.new_zeros(1))
    return {
        "edge": count.new_tensor(sums.edges),
        "count": sums.count,
        "cell_edge": count.new_tensor(CELL_EDGES),
        "gain": sums.cells[GAIN],
        "harm": sums.cells[HARM],
        "position_mean": sums.row("position") / count,
        "log_ratio_mean": mean,
        "log_ratio_std": (sums.row("log_ratio_squared") / count - mean.square()).clamp(min=0).sqrt(),
        "spread": (around / freedom.clamp(min=1)).sqrt(),
        "spread_count": freedom * widths / measured,
    }


def _removed(sums: ProfileSums) -> dict[str, tuple[Tensor, Tensor]]:
    """Two [K] per measure of what clipping removed: the part and the whole."""
    gain, harm = ((sums.row(f"{side}_removed"), sums.row(f"{side}_size")) for side in ("gain", "harm"))
    return {
        "gradient_removed": (gain[0] + harm[0], gain[1] + harm[1]),
        "gradient_removed_gain": gain,
        "gradient_removed_harm": harm,
        "gradient_removed_weighted": (sums.row("slope_removed"), sums.row("slope")),
    }


def _updates(sums: ProfileSums) -> dict[str, list[float | None]]:
    """The figures of each update over all positions, one list per figure."""
    tokens, clipped = sums.update_row("tokens"), sums.update_row("high") + sums.update_row("low")
    norms, mean, noise = sums.updates[:, -GRADIENT_FIGURES:].unbind(dim=1)
    whole: list[float | None] = [*_whole(sums.updates[:, 0])]
    count: list[float | None] = [*_whole(tokens)]
    return {
        "update": whole,
        "count": count,
        "clip_fraction": _share(clipped, tokens),
        "ess": _share(_effective(sums, "weight"), tokens),
        "gradient_ess": _share(_effective(sums, "left"), tokens),
        **{f"gradient_{name}": _share(sums.update_row(name), tokens) for name in SPLIT},
        "gradient_norm": [_finite(value) for value in norms.tolist()],
        "gradient_mean_squared": [_finite(value) for value in mean.tolist()],
        "gradient_noise_squared": [_finite(value) for value in noise.tolist()],
    }


def _effective(sums: ProfileSums, name: str) -> Tensor:
    """[U] the effective number of tokens of each update, over all positions."""
    squares = sums.update_row(f"{name}_squared")
    return torch.where(squares > 0, sums.update_row(name).square() / squares, 0.0)


def _noise(mean: Tensor, noise: Tensor) -> dict[str, float]:
    """How much of the square of a rollout batch's gradients is noise; empty if it was not measured."""
    measured = mean.isfinite() & noise.isfinite()
    if not bool(measured.any()):
        return {}
    m, s = float(mean[measured].sum()), float(noise[measured].sum())
    return {"gradient_noise": s / (m + s)} if m + s > 0 else {}


def _spread(sums: ProfileSums) -> dict[str, float | None]:
    """The fitted scale and power of the spread; None where there is nothing to fit."""
    names = ("scale", "power", "power_stderr")
    profile = as_profile(sums)
    try:
        fit = calibrate({name: profile[name] for name in _COLUMNS})
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
        return [None if t is None else base * t**bases.power - bases.drift * t for t in positions]

    band = {"low": at(bases.lower), "high": at(bases.upper), "dual": at(bases.dual)}
    return band if any(limits is not None for limits in band.values()) else None


def _whole(values: Tensor) -> list[int]:
    return [round(value) for value in values.tolist()]


def _where(values: Tensor, counts: Tensor) -> list[float | None]:
    return [_finite(a) if b else None for a, b in zip(values.tolist(), counts.tolist(), strict=True)]


def _share(part: Tensor, whole: Tensor) -> list[float | None]:
    return [_finite(a / b) if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]


def _std(total: Tensor, squares: Tensor, count: Tensor) -> list[float | None]:
    """The population standard deviation of each bin, from sums of values and of squares."""
    rows = zip(total.tolist(), squares.tolist(), count.tolist(), strict=True)
    return [_finite(math.sqrt(max(q / n - (s / n) ** 2, 0.0))) if n else None for s, q, n in rows]


def _finite(value: float) -> float | None:
    """The value to seven digits, as many as a float32 has; None if it is not finite."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
