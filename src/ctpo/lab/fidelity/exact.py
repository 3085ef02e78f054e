"""The norms that the figures need, from exact gradients: for small models, where each costs little.

A sketch knows |μ|² and the variance only to about √(2/P) for P directions. Here the gradient of every group of
responses comes from autograd, once for every objective. Only the means of blocks and bins are held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctpo.lab.fidelity.kept import Arrays, Kept
from ctpo.lab.fidelity.samples import Samples
from ctpo.lab.fidelity.sketch import Scorer

Array = NDArray[np.float64]
Norms = Callable[[Tensor, Sequence[NDArray[np.bool_]]], list[tuple[Array, Array]]]
"""Coefficients [N, T] and bins of responses, each [N], give the products and the squares of `Moments` for all
responses, and for those of each bin."""


def exact_norms(
    kept: Kept, scorer: Scorer, samples: Samples, digests: Sequence[str], folder: str, group: int, blocks: int
) -> Norms:
    """The norms of the gradients of one sample, by autograd. What is computed is kept on disk.

    Args:
        kept: where.
        scorer: of the target.
        samples: the responses, `group` to each problem.
        digests: of the responses.
        folder: of the sample, in `kept`.
        group: responses per problem.
        blocks: of problems.
    """

    def norms(coefficient: Tensor, bins: Sequence[NDArray[np.bool_]]) -> list[tuple[Array, Array]]:
        content = hashlib.sha256(coefficient.numpy().tobytes() + b"".join(each.tobytes() for each in bins))
        name, compute = (
            content.hexdigest()[:16],
            partial(_norms, scorer, samples, coefficient, bins, group, blocks),
        )
        arrays, _ = kept.arrays(
            f"{folder}/norms-{name}", [*digests, content.hexdigest(), f"{blocks}"], compute
        )
        return list(zip(arrays["products"], arrays["squares"], strict=True))

    return norms


def _norms(
    scorer: Scorer, samples: Samples, coefficient: Tensor, bins: Sequence[Any], group: int, blocks: int
) -> Arrays:
    groups = len(samples) // group
    products, squares = np.zeros((1 + len(bins), blocks, blocks)), np.zeros((1 + len(bins), blocks))
    means: list[list[Tensor]] = []
    for block in range(blocks):
        own = range(groups * block // blocks, groups * (block + 1) // blocks)
        total = [torch.zeros(scorer.size) for _ in range(1 + len(bins))]
        for place in own:
            rows = np.arange(place * group, (place + 1) * group)
            parts = [_gradient(scorer, samples, coefficient, rows[each[rows]]) / group for each in bins]
            for number, gradient in enumerate([torch.stack(parts).sum(0), *parts]):
                squares[number, block] += float(gradient.double().square().sum()) / len(own)
                total[number] += gradient / len(own)
        means.append(total)
    for number in range(1 + len(bins)):
        for i in range(blocks):
            for j in range(i, blocks):
                product = float(means[i][number].double() @ means[j][number].double())
                products[number, i, j] = products[number, j, i] = product
    return {"products": products, "squares": squares}


def _gradient(scorer: Scorer, samples: Samples, coefficient: Tensor, rows: NDArray[np.int_]) -> Tensor:
    """The gradient of some responses as one vector."""
    if not len(rows):
        return torch.zeros(scorer.size)
    part = samples.rows(torch.from_numpy(rows))
    gradient = scorer.gradient(part, coefficient[torch.from_numpy(rows), : part.mask.shape[1]])
    return torch.cat([each.flatten() for each in gradient.values()])
