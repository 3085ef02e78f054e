"""The objectives that the C pass knows: presets by name, and compositions that no preset has."""

from __future__ import annotations

from typing import Any

from ctpo.objectives import Objective, preset
from ctpo.objectives.ratios import CumulativeRatio, DecayedRatio, PrefixMeanRatio, SequenceRatio, TokenRatio
from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight
from ctpo.objectives.trust_regions import LogBand, RatioBand, Unbounded

PRESETS = [
    *("ctpo", "ctpo-fixed", "ctpo-fixed-matched", "ctpo-calibrated", "ctpo-geomean", "ctpo-prefix-gradient"),
    "ctpo-decay",
    *(
        "sequence",
        "ppo",
        "grpo",
        "dapo",
        "dr-grpo",
        "gspo",
        "gspo-token",
        "cispo",
        "minpro",
        "reinforce",
        "lusp",
    ),
]

COMPOSED: dict[str, tuple[Any, Any, Any]] = {
    "linear": (CumulativeRatio(), Unbounded(), Linear()),
    "linear-in-a-band": (CumulativeRatio(), LogBand(0.1, 0.1, 0.2, 0.5), Linear()),
    "weight": (SequenceRatio(), LogBand(0.1, 0.3), StopGradientWeight()),
    "scaled-weight": (CumulativeRatio(), LogBand(0.01, 0.02, power=0.5), StopGradientWeight()),
    "weight-of-a-differentiated-ratio": (SequenceRatio("through"), LogBand(0.1, 0.3), StopGradientWeight()),
    "decayed-weight": (DecayedRatio(0.7), LogBand(0.2, 0.3), StopGradientWeight()),
    "decayed-at-once": (DecayedRatio(1e-30), LogBand(0.1, 0.1, 0.2, 0.5), MinClip()),
    "token-through": (TokenRatio("through"), RatioBand(0.2, 0.2, 3.0), MinClip()),
    "mean-through": (PrefixMeanRatio("through"), LogBand(0.05, 0.05, None, -0.5), MinClip()),
    "sequence-through": (SequenceRatio("through"), LogBand(2.0, 2.0, 3.0), MinClip()),
    "weight-through": (CumulativeRatio("through"), LogBand(0.1, 0.3), Linear()),
    "one-sided": (CumulativeRatio(), LogBand(float("inf"), 0.1, power=0.5), MinClip()),
    "mean-in-a-shrinking-band": (PrefixMeanRatio(), LogBand(0.05, 0.05, 0.06, -0.25), MinClip()),
    "mean-in-a-fixed-band": (PrefixMeanRatio(), LogBand(0.02, 0.03), MinClip()),
    "one-sided-weight": (CumulativeRatio(), LogBand(float("inf"), 0.02, power=0.5), StopGradientWeight()),
    "beyond-exp": (CumulativeRatio(), LogBand(50.0, 100.0, None, 0.1), Linear()),
    "linear-growth": (CumulativeRatio(), LogBand(0.01, 0.02, 0.03, 1.0), MinClip()),
    "token-in-a-growing-band": (TokenRatio(), LogBand(0.01, 0.02, 0.03, 0.5), MinClip()),
    "beyond-the-cap": (CumulativeRatio(), LogBand(1.0, 3.0, None, 0.5), MinClip()),
    "weight-without-a-top": (CumulativeRatio(), LogBand(0.1, float("inf")), StopGradientWeight()),
    "dual-only": (CumulativeRatio(), LogBand(float("inf"), float("inf"), 8.0, 0.5), MinClip()),
}

NAMES = [*PRESETS, *COMPOSED]


def objective(name: str, backend: str = "auto", **knobs: Any) -> Objective:
    """The preset or the composition of a name."""
    if name in PRESETS:
        return preset(name, backend=backend, **knobs)
    ratio, region, surrogate = COMPOSED[name]
    return Objective(ratio=ratio, trust_region=region, surrogate=surrogate, backend=backend, **knobs)


def both(name: str, **knobs: Any) -> tuple[Objective, Objective]:
    """The objective on the C pass, and its definition."""
    return objective(name, "native", **knobs), objective(name, "compose", **knobs)
