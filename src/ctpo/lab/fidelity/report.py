"""The whole measurement of one pair, as one JSON object, from samples and sketches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from ctpo.lab.fidelity.coefficients import (
    coefficients,
    null_advantages,
    on_policy,
    recipe_advantages,
    turn_by_turn,
)
from ctpo.lab.fidelity.measure import (
    Moments,
    component,
    effective_share,
    estimates,
    paired_difference,
)
from ctpo.lab.fidelity.samples import Samples
from ctpo.lab.fidelity.sketch import residual
from ctpo.objectives import Objective
from ctpo.objectives.reductions import Reduction
from ctpo.training.config.checks import TURN_ADVANTAGES
from ctpo.training.config.config import CTPOConfig

Array = NDArray[np.float64]
_NULL_DRAWS: Final = 2
_LEVEL: Final = 0.05
RULE: Final = (
    "within noise of the best: the difference of batch cosines on the same samples is not above 0 at 5 % "
    "(two-sided t over blocks of problems, not corrected for the number of objectives)"
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One sample with its sketch.

    Attributes:
        samples: the responses.
        logps: [N, T] of the target.
        sketch: [M, 1 + P] derivatives of the target's log-probs, token by token.
    """

    samples: Samples
    logps: Tensor
    sketch: Tensor


@dataclass(frozen=True, kw_only=True)
class Design:
    """What the figures depend on beside the samples.

    Attributes:
        group, batch, blocks: responses per problem and per batch, and blocks of problems for the errors.
        reduction: the objectives' common reduction.
        rho: the cosine between the reference direction and the true gradient.
        along: [P] v_j·u of the random directions.
        lengths: edges of the bins of response length, in sampled tokens; empty for thirds of the responses.
        seed: of the null advantages.
    """

    group: int
    batch: int
    blocks: int
    reduction: Reduction
    rho: float
    along: Array
    lengths: tuple[int, ...]
    seed: int


class Gradients:
    """The gradients of groups of responses, for any objective and any advantages."""

    def __init__(self, measured: Measured, design: Design) -> None:
        self._of, self._design = measured, design
        rows = torch.arange(len(measured.samples))[:, None].expand(measured.samples.mask.shape)
        self._row = rows[measured.samples.mask]
        self._sketch = measured.sketch.double()

    def coefficients(self, objective: Objective, advantages: Tensor) -> Tensor:
        """[N, T] each token's coefficient of ∇log π_t."""
        return coefficients(objective, self._of.logps, self._of.samples, advantages, self._design.batch)

    def responses(self, coefficient: Tensor) -> Array:
        """[N, 1 + P] the coordinates of each response's gradient."""
        weighted = coefficient[self._of.samples.mask][:, None] * self._sketch
        sums = torch.zeros(len(self._of.samples), weighted.shape[1], dtype=torch.float64)
        return residual(sums.index_add_(0, self._row, weighted).numpy(), self._design.along)

    def moments(self, responses: Array, chosen: NDArray[np.bool_] | None = None) -> Moments:
        """The moments of the groups' gradients, of chosen responses alone if given."""
        kept = responses if chosen is None else responses * chosen[:, None]
        groups = kept.reshape(-1, self._design.group, kept.shape[1]).mean(1)
        return Moments.of(groups, self._design.blocks)


def measure(
    behaviour: Measured,
    target: Measured,
    objectives: Mapping[str, Objective],
    config: CTPOConfig,
    design: Design,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """The figures of every objective for one pair of policies.

    Args:
        behaviour: sampled by the behaviour policy.
        target: sampled by the target on the same problems: on-policy sampling.
        objectives: by name, with the common reduction.
        config: of the recipe, whose advantages count.
        design: batches, blocks and directions.
        progress: called with the number of objectives that are done.
    """
    groups = design.batch / design.group
    off, on = Gradients(behaviour, design), Gradients(target, design)
    unit = on_policy(design.reduction)
    kinds = {"turn" if config.advantages in TURN_ADVANTAGES else "response": recipe_advantages}
    if behaviour.samples.turn_rewards.shape[1] > 1 and config.advantages == "trl":
        kinds["turn"] = turn_by_turn
    yardsticks = {
        name: on.responses(on.coefficients(unit, kind(target.samples, config)))
        for name, kind in kinds.items()
    }
    own = {name: on.moments(each) for name, each in yardsticks.items()}
    bins = _bins(behaviour, target, design.lengths)
    first = next(iter(kinds))
    rows, kept = [], {}
    for place, (name, objective) in enumerate(objectives.items()):
        progress(place, len(objectives))
        row: dict[str, Any] = {"objective": name, "advantages": {}}
        for kind, advantages in kinds.items():
            gradients = off.responses(off.coefficients(objective, advantages(behaviour.samples, config)))
            moments = off.moments(gradients)
            figures = estimates(moments, own[kind], design.rho, groups)
            row["advantages"][kind] = {key: each.as_json for key, each in figures.items()}
            if kind == first:
                kept[name] = moments
                row["lengths"] = [
                    _in_bin(
                        off.moments(gradients, b.behaviour), on.moments(yardsticks[kind], b.target), design
                    )
                    for b in bins
                ]
        row["pull"] = component(_null(off, objective, behaviour.samples, design), own[first]).as_json
        row["ess"] = _ess(off, objective, unit, behaviour.samples)
        rows.append(row)
    progress(len(objectives), len(objectives))
    on_policy_row = {
        kind: {key: each.as_json for key, each in estimates(own[kind], own[kind], design.rho, groups).items()}
        for kind in kinds
    }
    return {
        "on_policy": on_policy_row,
        "drift": _drift(behaviour),
        "lengths": [each.as_json for each in bins],
        "positions": _positions(behaviour.samples),
        "objectives": rows,
        "recommended": recommend(kept, own[first], design.rho, groups),
    }


def recommend(kept: Mapping[str, Moments], on: Moments, rho: float, groups: float) -> dict[str, Any]:
    """The objective with the largest batch cosine, and those that are within noise of it (`RULE`)."""
    cosines = {name: estimates(each, on, rho, groups)["batch_cosine"].value for name, each in kept.items()}
    known = {name: value for name, value in cosines.items() if math.isfinite(value)}
    if not known:
        return {"best": None, "within_noise": [], "rule": RULE}
    best = max(known, key=lambda name: known[name])
    limit = float(stdtrit(len(on.means) - 1, 1 - _LEVEL / 2))
    within = []
    for name in sorted(known, key=lambda name: -known[name]):
        gap = paired_difference(kept[best], kept[name], rho, groups, on)
        if name == best or gap.value <= limit * gap.error or gap.value < 1e-6:
            within.append(name)
    return {"best": best, "within_noise": within, "rule": RULE}


@dataclass(frozen=True, kw_only=True)
class _Bin:
    """Responses of similar length, and their drift."""

    low: int
    high: int | None
    behaviour: NDArray[np.bool_]
    target: NDArray[np.bool_]
    drift: tuple[float, float]

    @property
    def as_json(self) -> dict[str, Any]:
        mean, std = self.drift
        return {
            "from": self.low,
            "below": self.high,
            "responses": int(self.behaviour.sum()),
            "log_ratio_mean": mean if math.isfinite(mean) else None,
            "log_ratio_std": std if math.isfinite(std) else None,
        }


def _bins(behaviour: Measured, target: Measured, edges: Sequence[int]) -> list[_Bin]:
    whole = ((behaviour.logps - behaviour.samples.logps) * behaviour.samples.mask).sum(1).double().numpy()
    lengths = [each.samples.sampled.numpy() for each in (behaviour, target)]
    if not edges:
        thirds = behaviour.samples.sampled.double().quantile(
            torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
        )
        edges = sorted({round(each) for each in thirds.tolist()} - {int(lengths[0].min())})
    limits = [0, *edges, None]
    bins = []
    for low, high in pairwise(limits):
        inside = [(each >= low) & (each < (math.inf if high is None else high)) for each in lengths]
        values = whole[inside[0]]
        drift = (float(values.mean()), float(values.std())) if len(values) else (math.nan, math.nan)
        bins.append(_Bin(low=low or 0, high=high, behaviour=inside[0], target=inside[1], drift=drift))
    return bins


def _in_bin(off: Moments, on: Moments, design: Design) -> dict[str, Any]:
    figures = estimates(off, on, design.rho, design.batch / design.group)
    return {key: figures[key].as_json for key in ("component", "signal_to_noise")}


def _null(off: Gradients, objective: Objective, samples: Samples, design: Design) -> Moments:
    """The moments under null advantages. Each draw comes with its negative, so that what is odd in A cancels."""
    total: Array | None = None
    for draw in range(_NULL_DRAWS):
        advantages = null_advantages(samples, design.seed + draw)
        for sign in (1.0, -1.0):
            gradients = off.responses(off.coefficients(objective, sign * advantages))
            total = gradients if total is None else total + gradients
    assert total is not None
    return off.moments(total / (2 * _NULL_DRAWS))


def _ess(off: Gradients, objective: Objective, unit: Objective, samples: Samples) -> list[float | None]:
    """The effective share of the weights after clipping, over both signs of the advantage, by position."""
    ones = torch.ones(samples.mask.shape)
    plain = off.coefficients(unit, ones)
    weights = [
        (
            off.coefficients(objective, sign * ones) / torch.where(plain == 0, torch.ones_like(plain), plain)
        ).abs()
        for sign in (1.0, -1.0)
    ]
    compact, mask = _compact(torch.cat(weights), torch.cat([samples.mask, samples.mask]))
    return effective_share(compact, mask, _positions(samples))


def _compact(values: Tensor, mask: Tensor) -> tuple[Array, NDArray[np.bool_]]:
    """The values of sampled tokens alone, so that column t − 1 is position t."""
    out = torch.zeros(values.shape, dtype=torch.float64)
    place = (mask.cumsum(1) - 1).clamp(min=0)
    rows = torch.arange(len(values))[:, None].expand(values.shape)
    out[rows[mask], place[mask]] = values[mask].double()
    reached = torch.arange(values.shape[1]) < mask.sum(1, keepdim=True)
    return out.numpy(), reached.numpy()


def _positions(samples: Samples) -> list[int]:
    """Positions 1, 2, 4, … up to one that a tenth of the responses reach."""
    last = int(samples.sampled.double().quantile(0.9))
    powers = [2**k for k in range(last.bit_length())]
    return sorted({*(each for each in powers if each <= last), max(last, 1)})


def _drift(behaviour: Measured) -> dict[str, Any]:
    mask = behaviour.samples.mask
    steps = (behaviour.logps - behaviour.samples.logps).double()
    prefix, reached = _compact((steps * mask).cumsum(1), mask)
    by_position = []
    for position in _positions(behaviour.samples):
        values = prefix[:, position - 1][reached[:, position - 1]]
        w = np.exp(values - values.max())
        by_position.append(
            {
                "position": position,
                "mean": float(values.mean()),
                "std": float(values.std()),
                "ess": float(w.sum() ** 2 / (len(w) * np.square(w).sum())),
            }
        )
    whole = (steps * mask).sum(1)
    return {
        "token_std": float(steps[mask].std()),
        "log_ratio_mean": float(whole.mean()),
        "log_ratio_std": float(whole.std()),
        "by_position": by_position,
    }
