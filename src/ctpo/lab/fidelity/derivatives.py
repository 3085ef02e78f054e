"""Log-probs of the target and their derivatives along all directions, kept on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.lab.fidelity.coefficients import coefficients, on_policy, recipe_advantages
from ctpo.lab.fidelity.exact import Norms, exact_norms
from ctpo.lab.fidelity.kept import Arrays, Kept
from ctpo.lab.fidelity.reference import Reference
from ctpo.lab.fidelity.report import Measured
from ctpo.lab.fidelity.samples import Samples
from ctpo.lab.fidelity.sizes import Progress, Sizes
from ctpo.lab.fidelity.sketch import TOLERANCE, Check, Parameters, Scorer, check, dot
from ctpo.objectives.reductions import Reduction
from ctpo.training.config.config import CTPOConfig

_CHECKED: Final = 8
_PARTS: Final = 4
"""Parts of the reference sample, from which the noise of its direction is known. Each costs one derivative."""


class Derivatives:
    """Log-probs of the target and their derivatives, for samples of any policy."""

    def __init__(
        self,
        kept: Kept,
        scorer: Scorer,
        reference: tuple[Samples, list[str]],
        config: CTPOConfig,
        reduction: Reduction,
        sizes: Sizes,
        progress: Progress,
    ) -> None:
        self._kept, self._scorer, self._sizes, self._progress = kept, scorer, sizes, progress
        self.directions = sizes.directions_for(scorer.size)
        """Random directions of the sketch; 0 if gradients are exact."""
        samples, digests = reference
        advantages = recipe_advantages(samples, config)
        k = coefficients(on_policy(reduction), samples.logps, samples, advantages, sizes.batch)
        group, problems = config.num_generations, len(samples) // config.num_generations
        count = min(_PARTS, problems)
        edges = [group * (problems * part // count) for part in range(count + 1)]
        self._group, self._rows = group, [slice(*pair) for pair in pairwise(edges)]
        self._compute = [
            partial(self._gradient, samples.rows(rows), k[rows, : int(samples.length[rows].max())])
            for rows in self._rows
        ]
        self._sources = [*digests, f"batch {sizes.batch}", f"parts {count}"]
        self._digests = []
        for part in range(count):
            progress("the on-policy gradient", part, count)
            self._digests.append(self._part(part)[1])
        gram = kept.arrays("gram", self._digests, self._gram)[0]["gram"]
        if not gram.sum() > 0:
            raise UserError(
                "the on-policy gradient is 0, because no group has different rewards; take other problems or more "
                "responses"
            )
        self._scale = math.sqrt(gram.sum())
        along = kept.arrays(f"along-{self.directions:03d}", self._digests, self._along)[0]["along"]
        self.reference = Reference(gram / gram.sum(), along, np.diff(edges).astype(float))

    def direction(self, place: int) -> Parameters:
        """Direction `place`: a part of the reference, or a random one."""
        parts = len(self._rows)
        if place >= parts:
            return self._scorer.direction(self._sizes.seed, place - parts + 1)
        arrays = self._part(place)[0]
        return {name: torch.from_numpy(each / np.float32(self._scale)) for name, each in arrays.items()}

    def measured(self, names: Mapping[str, tuple[Samples, list[str]]]) -> dict[str, Measured]:
        """Each sample, given with its digests, with its log-probs and derivatives."""
        logps = {}
        for place, (name, (samples, digests)) in enumerate(names.items()):
            self._progress("log-probs", place, len(names))
            arrays, _ = self._kept.arrays(f"{name}/logps", digests, partial(self._log_probs, samples))
            logps[name] = torch.from_numpy(arrays["logps"])
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        total = len(self._rows) + self.directions
        for place in range(total):
            self._progress("directions", place, total)
            of = self._digests[place : place + 1] or [f"random {place - len(self._rows) + 1}"]
            file = f"part-{place}" if place < len(self._rows) else f"random-{place - len(self._rows) + 1:03d}"
            held: list[Parameters] = []  # made once, and only if it is needed
            for name, (samples, digests) in names.items():
                compute = partial(self._derivative, samples, place, held)
                arrays, _ = self._kept.arrays(f"{name}/{file}", [*of, *digests], compute)
                columns[name].append(torch.from_numpy(arrays["derivatives"]))
        return {
            name: Measured(
                samples=samples,
                logps=logps[name],
                sketch=torch.stack(columns[name], 1),
                norms=None if self.directions else self._exact(samples, digests, name),
            )
            for name, (samples, digests) in names.items()
        }

    def _exact(self, samples: Samples, digests: list[str], name: str) -> Norms:
        return exact_norms(self._kept, self._scorer, samples, digests, name, self._group, self._sizes.blocks)

    def check(self, measured: Measured) -> Check:
        """The comparison of the sketch with autograd.

        Raises:
            UserError: if they differ.
        """
        few = measured.samples.rows(slice(0, _CHECKED))
        checked = check(
            self._scorer, few, self.direction, measured.sketch[: int(few.mask.sum())], self.reference
        )
        if not checked.error < TOLERANCE:
            raise UserError(
                f"the sketch differs from autograd by {100 * checked.error:.2g} per cent, and {100 * TOLERANCE:g} are "
                f"allowed; the model's derivatives are not reliable here; remove {self._kept.folder} to start anew"
            )
        return checked

    def _part(self, part: int) -> tuple[Arrays, str]:
        return self._kept.arrays(f"reference/gradient-{part}", self._sources, self._compute[part])

    def _gradient(self, samples: Samples, coefficient: Tensor) -> Arrays:
        return {name: each.numpy() for name, each in self._scorer.gradient(samples, coefficient).items()}

    def _gram(self) -> Arrays:
        count = len(self._rows)
        gram = np.zeros((count, count))
        for i in range(count):
            one = _tensors(self._part(i)[0])
            for j in range(i, count):
                gram[i, j] = gram[j, i] = dot(one, one if i == j else _tensors(self._part(j)[0]))
        return {"gram": gram}

    def _along(self) -> Arrays:
        count = len(self._rows)
        along = np.zeros((self.directions, count))
        for part in range(count):
            own = self.direction(part)
            for j in range(self.directions):
                along[j, part] = dot(self.direction(count + j), own)
        return {"along": along}

    def _log_probs(self, samples: Samples) -> Arrays:
        return {"logps": self._scorer.log_probs(samples).numpy()}

    def _derivative(self, samples: Samples, place: int, held: list[Parameters]) -> Arrays:
        if not held:
            held.append(self.direction(place))
        return {"derivatives": self._scorer.derivative(samples, held[0]).numpy()}


def _tensors(arrays: Arrays) -> Parameters:
    return {name: torch.from_numpy(each) for name, each in arrays.items()}
