"""Estimators made from the presets of the library, with their trust regions.

The coefficients of a preset are −∂loss/∂log π_t as the real objective computes them. Losses are summed over tokens, so
that every objective estimates the same Σ_t. A preset's own reduction would divide by the lengths of responses, which
are all T here, and so would only change the scale.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.lab.theory.families import FAMILIES, Coefficients, Estimator
from ctpo.lab.theory.problems import Problem, Trajectories
from ctpo.objectives import Objective, preset
from ctpo.objectives.clipped_mean import ClippedMeanRatio
from ctpo.objectives.quantile_gate import QuantileGate
from ctpo.objectives.ratios import (
    CumulativeRatio,
    DecayedRatio,
    FlippedRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    Ratio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.second_moment import SecondMomentBand
from ctpo.objectives.tokens import Tokens
from ctpo.objectives.trust_regions import Limits, RatioBand

_FAMILY_OF: Final[dict[type, str]] = {
    TokenRatio: "token",
    CumulativeRatio: "cumulative",
    DecayedRatio: "cumulative",
    PrefixMeanRatio: "prefix-mean",
    SequenceRatio: "sequence",
    SequenceMeanRatio: "sequence-mean",
    MinPrefixRatio: "min-prefix",
    UnitRatio: "unit",
    ClippedMeanRatio: "sequence-mean",
    FlippedRatio: "token",
}


@dataclasses.dataclass(frozen=True)
class PositionBand:
    """Limits on the log of the weight: what a region that adapts to the minibatch does in an infinite one.

    Attributes:
        lower, upper: nats, of every position, [T].
    """

    lower: Tensor
    upper: Tensor

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """Return the limits at every token (`ctpo.objectives.trust_regions.TrustRegion`)."""
        return Limits(self.lower.expand_as(log_weight), self.upper.expand_as(log_weight))


def coefficients_of(objective: Objective) -> Coefficients:
    """Return k_t(o) = −∂loss/∂log π_t of an objective, with its losses summed over tokens."""
    summed = dataclasses.replace(objective, reduction=Reduction("sum"))

    def coefficients(o: Trajectories) -> Tensor:
        logps = o.logps.detach().T.contiguous().requires_grad_()
        with torch.enable_grad():
            out = summed(
                logps, o.old_logps.T.contiguous(), o.advantages.T.contiguous(), torch.ones_like(logps).bool()
            )
            (gradient,) = torch.autograd.grad(out.loss, logps)
        return -gradient.T

    return coefficients


def objective_estimator(spec: str, problem: Problem) -> Estimator:
    """Return the estimator of a preset with its trust region.

    Args:
        spec: the name of a preset, with knobs after a question mark: "ctpo?log_high=0.1&log_dual=none".
        problem: gives regions that adapt to the minibatch their limits, as an infinitely large one would.

    Raises:
        UserError: if the preset or a knob is unknown, a value is out of range, or the preset needs turns.

    Example:
        objective_estimator("ctpo?log_high=0.1", Setup(horizon=3).problem()).name  # "ctpo?log_high=0.1"
    """
    objective = read_objective(spec)
    if objective.needs_turns:
        raise UserError(f"objective {spec!r}: the responses enumerated here have one turn each; use 'ctpo'")
    region = objective.trust_region
    if isinstance(region, QuantileGate):
        bound = _gate_bounds(objective.ratio, region, problem)
        objective = dataclasses.replace(objective, trust_region=PositionBand(-bound, bound))
    elif isinstance(region, SecondMomentBand):
        objective = dataclasses.replace(objective, trust_region=_moment_band(region, problem))
    family = FAMILIES[family_of(objective.ratio)]
    return dataclasses.replace(family, name=spec, coefficients=coefficients_of(objective))


def read_objective(spec: str) -> Objective:
    """Return the objective of a preset's name, with knobs after a question mark: "ctpo?log_high=0.1&log_dual=none".

    Raises:
        UserError: if the preset or a knob is unknown, or a value is out of range.
    """
    name, _, query = spec.partition("?")
    try:
        objective = preset(name, **_knobs(query))
    except (ValueError, TypeError) as error:
        raise UserError(f"objective {spec!r}: {error}") from None
    return objective


def family_of(ratio: Ratio) -> str:
    """Return the name of the family without clipping that has this ratio."""
    if isinstance(ratio, CumulativeRatio) and ratio.gradient == "through":
        return "prefix-gradient"
    return _FAMILY_OF[type(ratio)]


def _knobs(query: str) -> dict[str, Any]:
    """Return the knobs in "a=1&b=none", with values that are numbers, None, booleans or words.

    Raises:
        ValueError: if a part has no equals sign.
    """
    knobs: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is no knob; write it as name=value")
        knobs[key] = _value(text)
    return knobs


def _value(text: str) -> Any:
    named = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _gate_bounds(ratio: Ratio, gate: QuantileGate, problem: Problem) -> Tensor:
    """Return the bounds τ·σ_t of a quantile gate, [T], from the distribution of its statistic under b."""
    o = problem.trajectories(problem.tree.whole())
    statistic = o.log_ratios.cumsum(0) if isinstance(ratio, CumulativeRatio) else o.log_ratios.sum(0)
    statistic = statistic.expand_as(o.logps)
    mass = torch.where(o.advantages != 0, o.probability, 0.0)
    scale = torch.ones(len(o.logps), 1, dtype=torch.float64)
    if gate.by_position:
        scale = ((mass * statistic.square()).sum(-1, keepdim=True) / mass.sum(-1, keepdim=True)).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
    order = (statistic.abs() / scale).reshape(-1).sort()
    reached = mass.reshape(-1)[order.indices].cumsum(0)
    first = int(torch.searchsorted(reached, (1 - gate.q - 1e-9) * reached[-1]))
    # A little above the threshold, because the value at the threshold itself must stay inside.
    tau = order.values[min(first, len(order.values) - 1)] * (1 + 1e-12)
    return tau * scale.squeeze(-1) if math.isfinite(tau) else torch.full((len(scale),), math.inf).double()


def _moment_band(region: SecondMomentBand, problem: Problem) -> PositionBand:
    """Return the band of a second moment, the same at every position, from the distribution of d under b."""
    o = problem.trajectories(problem.tree.whole())
    d, a = o.log_ratios, o.advantages.expand_as(o.log_ratios)
    moving = ((a > 0) & (d > 0)) | ((a < 0) & (d < 0))
    mass = torch.where(moving, o.probability.expand_as(d), 0.0).reshape(-1)
    square, order = d.square().reshape(-1).sort()
    mass = mass[order]
    # The mean if everything from here on is cut to the value here, times the mass of all.
    before, above = (mass * square).cumsum(0) - mass * square, mass.flip(0).cumsum(0).flip(0)
    budget = region.moment * mass.sum()
    inside = before + square * above <= budget
    tau = torch.full((), math.inf, dtype=torch.float64)
    if not inside.all():
        first = int(inside.sum())
        tau = ((budget - before[first]) / above[first]).sqrt()
    narrowest = RatioBand(region.ratio_low, region.ratio_high).bases
    ones = torch.ones(len(d), dtype=torch.float64)
    return PositionBand(-tau.clamp(min=-narrowest.lower) * ones, tau.clamp(min=narrowest.upper) * ones)
