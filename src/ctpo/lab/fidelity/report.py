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
from ctpo.lab.fidelity.exact import Norms
from ctpo.lab.fidelity.measure import (
    Estimate,
    Moments,
    Signals,
    component,
    effective_share,
    estimates,
    paired_difference,
    signals_of,
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
        norms: of gradients by autograd; None to take them from the sketch.
    """

    samples: Samples
    logps: Tensor
    sketch: Tensor
    norms: Norms | None = None


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

    def signals(
        self, responses: Array, chosen: NDArray[np.bool_] | None = None, octave: int | None = None
    ) -> Signals:
        """The signals of the groups' gradients: of chosen responses alone, or of one octave of positions."""
        groups = self._groups(responses if octave is None else responses[:, octave : octave + 1], chosen)
        return Signals(signals_of(groups, self._design.blocks, self._design.reference))

    def moments(
        self, coefficient: Tensor, responses: Array, bins: Sequence[NDArray[np.bool_]]
    ) -> list[Moments]:
        """The moments of the groups' gradients: of all responses, and of those of each bin alone.

        Args:
            coefficient, responses: what `coefficients` and then `responses` returned.
            bins: [N] each; every response is in one of them.
        """
        chosen, norms, design = [None, *bins], self._of.norms, self._design
        if norms is None:
            return [
                Moments.of(self._groups(responses, each), design.blocks, design.reference) for each in chosen
            ]
        found = norms(coefficient, bins)
        return [
            Moments(self.signals(responses, each).signals, products, squares)
            for each, (products, squares) in zip(chosen, found, strict=True)
        ]

    def _groups(self, responses: Array, chosen: NDArray[np.bool_] | None) -> Array:
        """[n, R + P] the products of the groups' gradients with the directions."""
        kept = responses.sum(1)
        if chosen is not None:
            kept = kept * chosen[:, None]
        groups: Array = kept.reshape(-1, self._design.group, kept.shape[1]).mean(1)
        return groups


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
        self._edges = _edges(target.samples, design.lengths)
        self._on = Gradients(target, design, self._octaves)
        self._own = {
            name: self._of_kind(name, self._on, self._unit, self._inside(target)) for name in self._kinds
        }

    @property
    def as_json(self) -> dict[str, Any]:
        """The figures of the target: on-policy sampling, and the bins of the other figures."""
        return {
            "on_policy": {
                kind: {
                    **self._figures(own.whole, own.whole),
                    "octaves": [component(each, own.whole).as_json for each in own.octaves],
                }
                for kind, own in self._own.items()
            },
            "positions": self.positions,
            "octaves": [2**k for k in range(self._octaves)],
            "rule": RULE,
        }

    def pair(
        self, behaviour: Measured, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> dict[str, Any]:
        """The figures of every objective on the responses of a behaviour policy.

        Args:
            behaviour: its responses to the same problems.
            progress: called with the number of objectives that are done, and of all.
        """
        off, inside = Gradients(behaviour, self._design, self._octaves), self._inside(behaviour)
        rows = []
        kept: dict[str, dict[str, Moments]] = {kind: {} for kind in self._own}
        for place, (name, objective) in enumerate(self._objectives.items()):
            progress(place, len(self._objectives))
            row: dict[str, Any] = {"objective": name, "advantages": {}}
            for kind, own in self._own.items():
                found = self._of_kind(kind, off, objective, inside)
                null = self._null(kind, off, objective)
                row["advantages"][kind] = {
                    **self._figures(found.whole, own.whole),
                    "pull": component(off.signals(null), own.whole).as_json,
                    "lengths": [
                        {
                            **self._figures(part, whole),
                            "pull": component(off.signals(null, chosen), whole).as_json,
                        }
                        for part, whole, chosen in zip(found.bins, own.bins, inside, strict=True)
                    ],
                    "octaves": [component(each, own.whole).as_json for each in found.octaves],
                }
                kept[kind][name] = found.whole
            row["ess"] = [
                each.as_json for each in _ess(off, objective, self._unit, self.positions, self._design)
            ]
            rows.append(row)
        progress(len(self._objectives), len(self._objectives))
        bins = zip(pairwise(self._edges), inside, strict=True)
        return {
            "drift": _drift(behaviour, self.positions, self._design),
            "lengths": [
                {"from": low, "below": high, **_drift_within(behaviour, one)} for (low, high), one in bins
            ],
            "objectives": rows,
            "recommended": {
                kind: recommend(each, self._design.reference, self._batch) for kind, each in kept.items()
            },
        }

    @property
    def _batch(self) -> float:
        """Groups of a batch."""
        return self._design.batch / self._design.group

    def _inside(self, measured: Measured) -> list[NDArray[np.bool_]]:
        """[N] the responses within each bin of length."""
        return [_within(measured.samples, *pair) for pair in pairwise(self._edges)]

    def _figures(self, off: Moments, on: Moments) -> dict[str, Any]:
        found = estimates(off, on, self._design.reference, self._batch)
        return {key: each.as_json for key, each in found.items()}

    def _of_kind(
        self, kind: str, gradients: Gradients, objective: Objective, bins: Sequence[NDArray[np.bool_]]
    ) -> _Moments:
        """The moments of an objective with one kind of advantages."""
        coefficient = gradients.coefficients(objective, self._kinds[kind](gradients.samples, self._config))
        responses = gradients.responses(coefficient)
        whole, *parts = gradients.moments(coefficient, responses, bins)
        return _Moments(whole, parts, [gradients.signals(responses, octave=k) for k in range(self._octaves)])

    def _null(self, kind: str, off: Gradients, objective: Objective) -> Array:
        """The gradients under advantages that know nothing, as large as those of the recipe.

        Each draw comes with its negative, so that what is odd in A cancels.
        """
        samples = off.samples
        size = float(self._kinds[kind](samples, self._config)[samples.mask].double().square().mean().sqrt())
        drawn = [
            sign * null_advantages(samples, size, self._design.seed + draw, by_turn=kind == "turn")
            for draw in range(_NULL_DRAWS)
            for sign in (1.0, -1.0)
        ]
        total = np.zeros(1)
        for advantages in drawn:
            total = total + off.responses(off.coefficients(objective, advantages)) / len(drawn)
        return total


@dataclass(frozen=True)
class _Moments:
    """Of all responses, of each bin of length, and the signals of each octave of positions."""

    whole: Moments
    bins: list[Moments]
    octaves: list[Signals]


def recommend(kept: Mapping[str, Moments], reference: Reference, groups: float) -> dict[str, Any]:
    """The objective with the largest batch cosine, and those that are within noise of it (`RULE`)."""
    cosines = {
        name: estimates(each, each, reference, groups)["batch_cosine"].value for name, each in kept.items()
    }
    known = {name: value for name, value in cosines.items() if math.isfinite(value)}
    if not known:
        return {"best": None, "within_noise": []}
    best = max(known, key=lambda name: known[name])
    within = []
    for name in sorted(known, key=lambda name: -known[name]):
        gap = paired_difference(kept[best], kept[name], reference, groups)
        if name == best or not gap.value > gap.reach or gap.value < 1e-6:
            within.append(name)
    return {"best": best, "within_noise": within}


def _edges(samples: Samples, edges: Sequence[int]) -> list[int | None]:
    """The edges of the bins of response length, from 0 to no end."""
    if not edges:
        lengths = samples.sampled[samples.in_loss]
        thirds = lengths.double().quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
        edges = sorted({round(each) for each in thirds.tolist()} - {int(lengths.min())})
    return [0, *edges, None]


def _within(samples: Samples, low: int | None, high: int | None) -> NDArray[np.bool_]:
    lengths = samples.sampled.numpy()
    inside: NDArray[np.bool_] = (lengths >= (low or 1)) & (lengths < (math.inf if high is None else high))
    return inside


def _ess(
    off: Gradients, objective: Objective, unit: Objective, positions: Sequence[int], design: Design
) -> list[Estimate]:
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
    return effective_share(compact, reached, positions, np.tile(_blocks(off.samples, design), 2))


def _blocks(samples: Samples, design: Design) -> NDArray[np.int_]:
    """[N] the block of problems of each response, from 0."""
    blocks: NDArray[np.int_] = np.arange(len(samples)) * design.blocks // len(samples)
    return blocks


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


def _drift(behaviour: Measured, positions: Sequence[int], design: Design) -> dict[str, Any]:
    mask, steps = behaviour.samples.mask, _log_ratios(behaviour)
    prefix, reached = _compact(steps.cumsum(1), mask)
    highest = np.where(reached, prefix, -math.inf).max(0)
    weights = np.exp(np.where(reached, prefix - np.where(reached.any(0), highest, 0.0), -math.inf))
    shares = effective_share(weights, reached, positions, _blocks(behaviour.samples, design))
    by_position = []
    for position, share in zip(positions, shares, strict=True):
        values = (
            prefix[reached[:, position - 1], position - 1] if position <= prefix.shape[1] else np.zeros(0)
        )
        by_position.append(
            {
                "position": position,
                "mean": float(values.mean()) if len(values) else None,
                "std": float(values.std()) if len(values) else None,
                "ess": share.as_json,
            }
        )
    whole = steps.sum(1)[behaviour.samples.in_loss]
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
    last = int(samples.sampled[samples.in_loss].double().quantile(0.9))
    powers = [2**k for k in range(last.bit_length())]
    return sorted({*(each for each in powers if each <= last), max(last, 1)})
