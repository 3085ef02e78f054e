"""The figures of one target and one or more behaviour policies, as one JSON object, from samples and sketches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
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
    figures,
    paired_difference,
)
from ctpo.lab.fidelity.reference import Reference
from ctpo.lab.fidelity.samples import Samples
from ctpo.objectives import Objective
from ctpo.objectives.reductions import Reduction
from ctpo.training.config.checks import TURN_ADVANTAGES
from ctpo.training.config.config import CTPOConfig

Array = NDArray[np.float64]
_NULL_DRAWS: Final = 2
RULE: Final = (
    "within noise of the best: the difference of batch cosines on the same samples is not above 0 at 5 % "
    "(two-sided t over blocks of problems and parts of the reference, not corrected for the number of objectives)"
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One sample with its sketch.

    Attributes:
        samples: the responses.
        logps: [N, T] of the target.
        sketch: [M, R + P] derivatives of the target's log-probs, token by token.
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
        reference: the on-policy gradient, in parts.
        lengths: edges of the bins of response length, in sampled tokens; empty for thirds of the target's responses.
        seed: of the null advantages.
    """

    group: int
    batch: int
    blocks: int
    reduction: Reduction
    reference: Reference
    lengths: tuple[int, ...]
    seed: int


class Gradients:
    """The gradients of groups of responses, for any objective and any advantages.

    Args:
        measured: the responses.
        design: batches, blocks and directions.
        octaves: how many bins of positions there are: 1, 2 to 3, 4 to 7 and so on, the last one open.
    """

    def __init__(self, measured: Measured, design: Design, octaves: int = 1) -> None:
        self.samples, self._of, self._design, self._octaves = measured.samples, measured, design, octaves
        mask = measured.samples.mask
        rows = torch.arange(len(measured.samples))[:, None].expand(mask.shape)
        position = mask.cumsum(1).clamp(min=1)
        octave = position.double().log2().floor().long().clamp(max=octaves - 1)
        self._cell = (rows * octaves + octave)[mask]
        self._sketch = measured.sketch.double()

    def coefficients(self, objective: Objective, advantages: Tensor) -> Tensor:
        """[N, T] each token's coefficient of ∇log π_t."""
        return coefficients(objective, self._of.logps, self._of.samples, advantages, self._design.batch)

    def responses(self, coefficient: Tensor) -> Array:
        """[N, Q, R + P] the products of each response's gradient with the directions, by octave of the position."""
        weighted = coefficient[self.samples.mask][:, None] * self._sketch
        sums = torch.zeros(len(self.samples) * self._octaves, weighted.shape[1], dtype=torch.float64)
        sums.index_add_(0, self._cell, weighted)
        return sums.reshape(len(self.samples), self._octaves, -1).numpy()

    def moments(
        self, responses: Array, chosen: NDArray[np.bool_] | None = None, octave: int | None = None
    ) -> Moments:
        """The moments of the groups' gradients: of chosen responses alone, or of one octave of positions."""
        kept = responses.sum(1) if octave is None else responses[:, octave]
        if chosen is not None:
            kept = kept * chosen[:, None]
        groups = kept.reshape(-1, self._design.group, kept.shape[1]).mean(1)
        return Moments.of(groups, self._design.blocks, self._design.reference)


class Measurement:
    """The figures of objectives for one target, beside which behaviour policies are put.

    Args:
        target: sampled by the target on the same problems: on-policy sampling.
        objectives: by name, with the common reduction.
        config: of the recipe, whose advantages count.
        design: batches, blocks and directions.
    """

    def __init__(
        self, target: Measured, objectives: Mapping[str, Objective], config: CTPOConfig, design: Design
    ) -> None:
        self._target, self._objectives, self._config, self._design = target, objectives, config, design
        self.positions = _positions(target.samples)
        self._octaves = self.positions[-1].bit_length()
        self._unit = on_policy(design.reduction)
        self._kinds = {"turn" if config.advantages in TURN_ADVANTAGES else "response": recipe_advantages}
        if target.samples.turn_rewards.shape[1] > 1 and config.advantages == "trl":
            self._kinds["turn"] = turn_by_turn
        self._first = next(iter(self._kinds))
        self._on = Gradients(target, design, self._octaves)
        self._own = {
            name: self._on.responses(self._on.coefficients(self._unit, kind(target.samples, config)))
            for name, kind in self._kinds.items()
        }
        self._moments = {name: self._on.moments(each) for name, each in self._own.items()}
        self._edges = _edges(target.samples, design.lengths)

    @property
    def as_json(self) -> dict[str, Any]:
        """The figures of the target: on-policy sampling, and the bins of the other figures."""
        reference, groups = self._design.reference, self._design.batch / self._design.group
        return {
            "on_policy": {
                kind: {key: each.as_json for key, each in estimates(own, own, reference, groups).items()}
                for kind, own in self._moments.items()
            },
            "positions": self.positions,
            "octaves": [
                {
                    "from": 2**k,
                    **component(
                        self._on.moments(self._own[self._first], octave=k), self._moments[self._first]
                    ).as_json,
                }
                for k in range(self._octaves)
            ],
        }

    def pair(
        self, behaviour: Measured, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> dict[str, Any]:
        """The figures of every objective on the responses of a behaviour policy.

        Args:
            behaviour: its responses to the same problems.
            progress: called with the number of objectives that are done, and of all.
        """
        off, design, samples = (
            Gradients(behaviour, self._design, self._octaves),
            self._design,
            behaviour.samples,
        )
        reference, groups = design.reference, design.batch / design.group
        inside = [[_within(each.samples, *pair) for each in (behaviour, self._target)] for pair in self._bins]
        rows, kept = [], {}
        for place, (name, objective) in enumerate(self._objectives.items()):
            progress(place, len(self._objectives))
            row: dict[str, Any] = {"objective": name, "advantages": {}}
            for kind, advantages in self._kinds.items():
                gradients = off.responses(off.coefficients(objective, advantages(samples, self._config)))
                moments, own = off.moments(gradients), self._own[kind]
                figures = estimates(moments, self._moments[kind], reference, groups)
                row["advantages"][kind] = {key: each.as_json for key, each in figures.items()}
                if kind == self._first:
                    kept[name] = moments
                    row["lengths"] = [
                        _part(off.moments(gradients, one), self._on.moments(own, two), reference, groups)
                        for one, two in inside
                    ]
                    row["octaves"] = [
                        component(off.moments(gradients, octave=k), self._moments[kind]).as_json
                        for k in range(self._octaves)
                    ]
            null = _null(off, objective, design)
            row["pull"] = component(null, self._moments[self._first]).as_json
            row["ess"] = _ess(off, objective, self._unit, self.positions)
            rows.append(row)
        progress(len(self._objectives), len(self._objectives))
        return {
            "drift": _drift(behaviour, self.positions),
            "lengths": [
                {"from": low, "below": high, **_drift_within(behaviour, one)}
                for (low, high), (one, _) in zip(self._bins, inside, strict=True)
            ],
            "objectives": rows,
            "recommended": recommend(kept, reference, groups),
        }

    @property
    def _bins(self) -> list[tuple[int | None, int | None]]:
        return list(pairwise(self._edges))


def recommend(kept: Mapping[str, Moments], reference: Reference, groups: float) -> dict[str, Any]:
    """The objective with the largest batch cosine, and those that are within noise of it (`RULE`)."""
    cosines = {
        name: figures(each, each, reference.cosine, groups)["batch_cosine"] for name, each in kept.items()
    }
    known = {name: value for name, value in cosines.items() if math.isfinite(value)}
    if not known:
        return {"best": None, "within_noise": [], "rule": RULE}
    best = max(known, key=lambda name: known[name])
    within = []
    for name in sorted(known, key=lambda name: -known[name]):
        gap = paired_difference(kept[best], kept[name], reference, groups)
        if name == best or not gap.value > gap.reach or gap.value < 1e-6:
            within.append(name)
    return {"best": best, "within_noise": within, "rule": RULE}


def _edges(samples: Samples, edges: Sequence[int]) -> list[int | None]:
    """The edges of the bins of response length, from 0 to no end."""
    if not edges:
        thirds = samples.sampled.double().quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
        edges = sorted({round(each) for each in thirds.tolist()} - {int(samples.sampled.min())})
    return [0, *edges, None]


def _within(samples: Samples, low: int | None, high: int | None) -> NDArray[np.bool_]:
    lengths = samples.sampled.numpy()
    inside: NDArray[np.bool_] = (lengths >= (low or 0)) & (lengths < (math.inf if high is None else high))
    return inside


def _part(off: Moments, on: Moments, reference: Reference, groups: float) -> dict[str, Any]:
    found = estimates(off, on, reference, groups)
    return {key: found[key].as_json for key in ("component", "signal_to_noise")}


def _null(off: Gradients, objective: Objective, design: Design) -> Moments:
    """The moments under null advantages. Each draw comes with its negative, so that what is odd in A cancels."""
    total: Array | None = None
    for draw in range(_NULL_DRAWS):
        advantages = null_advantages(off.samples, design.seed + draw)
        for sign in (1.0, -1.0):
            gradients = off.responses(off.coefficients(objective, sign * advantages))
            total = gradients if total is None else total + gradients
    assert total is not None
    return off.moments(total / (2 * _NULL_DRAWS))


def _ess(
    off: Gradients, objective: Objective, unit: Objective, positions: Sequence[int]
) -> list[float | None]:
    """The effective share of the weights after clipping, over both signs of the advantage, by position."""
    mask = off.samples.mask
    ones = torch.ones(mask.shape)
    plain = off.coefficients(unit, ones)
    weights = [
        (
            off.coefficients(objective, sign * ones) / torch.where(plain == 0, torch.ones_like(plain), plain)
        ).abs()
        for sign in (1.0, -1.0)
    ]
    compact, reached = _compact(torch.cat(weights), torch.cat([mask, mask]))
    return effective_share(compact, reached, positions)


def _drift_within(behaviour: Measured, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """The number of chosen responses, and the mean and standard deviation of their log ratios."""
    whole = _log_ratios(behaviour).sum(1).numpy()[chosen]
    return {
        "responses": len(whole),
        "log_ratio_mean": float(whole.mean()) if len(whole) else None,
        "log_ratio_std": float(whole.std()) if len(whole) else None,
    }


def _log_ratios(behaviour: Measured) -> Tensor:
    """[N, T] log π_target − log π_behaviour of the sampled tokens, and 0 elsewhere."""
    steps = (behaviour.logps - behaviour.samples.logps).double()
    return steps * behaviour.samples.mask


def _drift(behaviour: Measured, positions: Sequence[int]) -> dict[str, Any]:
    mask, steps = behaviour.samples.mask, _log_ratios(behaviour)
    prefix, reached = _compact(steps.cumsum(1), mask)
    by_position = []
    for position in positions:
        values = (
            prefix[:, position - 1][reached[:, position - 1]]
            if position <= prefix.shape[1]
            else prefix[:0, 0]
        )
        w = np.exp(values - values.max(initial=-math.inf))
        by_position.append(
            {
                "position": position,
                "mean": float(values.mean()) if len(values) else None,
                "std": float(values.std()) if len(values) else None,
                "ess": float(w.sum() ** 2 / (len(w) * np.square(w).sum())) if len(values) else None,
            }
        )
    whole = steps.sum(1)
    return {
        "token_std": float(steps[mask].std()),
        "log_ratio_mean": float(whole.mean()),
        "log_ratio_std": float(whole.std()),
        "by_position": by_position,
    }


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
