"""What the files of presets share."""

from __future__ import annotations

from ctpo.objectives.objective import Objective
from ctpo.objectives.quantile_gate import Smoothing
from ctpo.objectives.ratios import Ratio
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import Surrogate
from ctpo.objectives.trust_regions import TrustRegion


def compose_parts(ratio: Ratio, region: TrustRegion, surrogate: Surrogate, reduction: str) -> Objective:
    """The objective of these parts, with a reduction by name."""
    return Objective(ratio=ratio, trust_region=region, surrogate=surrogate, reduction=Reduction(reduction))


def smoothing(ema: float | None) -> Smoothing | None:
    """An average over calls with that decay; None for none."""
    return None if ema is None else Smoothing(ema)
