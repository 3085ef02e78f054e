"""Directional derivatives of the log-prob of every sampled token, from which the gradient of any objective follows.

An objective's gradient is Σ_t k_t ∇log π(a_t|s_t), where k_t = −∂loss/∂log π(a_t|s_t) needs no model. With the
derivatives v·∇log π_t along a few directions v, every objective's gradient is known along them as a product of two
arrays. They are computed by forward-mode differentiation, exact to rounding, one direction at a time.

The first directions are the parts of the on-policy gradient (`reference`), and the others are normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, jvp

from ctpo.errors import UserError
from ctpo.lab.fidelity.reference import Reference
from ctpo.lab.fidelity.samples import Samples

Array = NDArray[np.float64]
Parameters = dict[str, Tensor]

_LOGITS: Final = 1 << 24
"""How many logits one micro-batch may have: 64 MB in float32, of which forward mode keeps a few copies."""
_TOKENS: Final = 3072
"""How many tokens one micro-batch may have. What fits into the cache is two to three times as fast as large tensors."""
TOLERANCE: Final = 0.01
"""The largest relative error of derivatives, against autograd, that is accepted."""


@dataclass(frozen=True)
class Check:
    """A comparison of the sketch with the gradient of autograd.

    Attributes:
        error: the root mean square difference along the directions, relative to that of the values.
        norm: the norm of the gradient as the sketch estimates it, over the exact one. It differs from 1 by chance,
            about 1/√(2P) for P directions. None without random directions.
    """

    error: float
    norm: float | None


class Scorer:
    """The log-probs of sampled tokens under a model, and their derivatives.

    Args:
        model: called with `input_ids`, `attention_mask` and `use_cache`; its result has `logits`. The attention of a
            transformers model is set to "eager", which has derivatives in forward mode. Its embeddings forget which
            token is padding: as an input, that token has no gradient in autograd, and it often ends turns too.
        temperature: the divisor of the logits.
        vocabulary: how many logits a token has.
    """

    def __init__(self, model: nn.Module, *, temperature: float, vocabulary: int) -> None:
        setter = getattr(model, "set_attn_implementation", None)
        if setter is not None:
            setter("eager")
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.padding_idx = None
        self.model, self.temperature, self.vocabulary = model, temperature, vocabulary
        self.parameters: Parameters = {name: each.detach() for name, each in model.named_parameters()}

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(each.numel() for each in self.parameters.values())

    def log_probs(self, samples: Samples) -> Tensor:
        """[N, T] log-probs of all responses, 0 where the policy sampled nothing."""
        out = torch.zeros(samples.mask.shape)
        with torch.no_grad():
            for rows, part in self._parts(samples):
                values = self._score(self.parameters, part)
                out[rows, : values.shape[1]] = values
        return out

    def derivative(self, samples: Samples, direction: Parameters) -> Tensor:
        """[M] the derivative along a direction of each sampled token's log-prob, in the order of `samples.mask`.

        Raises:
            UserError: if the model has a part without derivatives in forward mode.
        """
        out = torch.zeros(samples.mask.shape)
        for rows, part in self._parts(samples):
            try:
                values = jvp(partial(self._score, part=part), (self.parameters,), (direction,))[1]
            except (NotImplementedError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"the model has no derivatives in forward mode ({reason}); use a model of plain torch operations"
                ) from None
            out[rows, : values.shape[1]] = values
        return out[samples.mask]

    def gradient(self, samples: Samples, coefficients: Tensor) -> Parameters:
        """Σ_it k_it ∇log π_it by autograd, for coefficients k of [N, T]."""
        leaves = {name: each.clone().requires_grad_() for name, each in self.parameters.items()}
        total = {name: torch.zeros_like(each) for name, each in self.parameters.items()}
        for rows, part in self._parts(samples):
            values = self._score(leaves, part)
            weighted = (values * coefficients[rows, : values.shape[1]].to(values)).sum()
            gradients = torch.autograd.grad(weighted, list(leaves.values()), allow_unused=True)
            for name, each in zip(total, gradients, strict=True):
                if each is not None:
                    total[name] += each
        return total

    def direction(self, seed: int, place: int) -> Parameters:
        """A direction of independent normal numbers, which depends on seed and place alone."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + place) % 2**63)
        return {
            name: torch.randn(each.shape, generator=generator).to(each)
            for name, each in self.parameters.items()
        }

    def _parts(self, samples: Samples) -> Iterator[tuple[Tensor, Samples]]:
        """Micro-batches of responses of similar length."""
        order = torch.argsort(samples.prompt + samples.length, stable=True)
        whole = (samples.prompt + samples.length)[order]
        end = len(order)
        while end > 0:  # the longest first, so that too little memory shows at once
            rows = max(1, min(_TOKENS, _LOGITS // self.vocabulary) // int(whole[end - 1]))
            chosen = order[max(0, end - rows) : end]
            yield chosen, samples.rows(chosen)
            end -= rows

    def _score(self, parameters: Parameters, part: Samples) -> Tensor:
        places = torch.arange(part.ids.shape[1])
        attention = (places < (part.prompt + part.length)[:, None]).long()
        out = functional_call(
            self.model,
            parameters,
            (),
            {"input_ids": part.ids, "attention_mask": attention, "use_cache": False},
        )
        last = part.ids.shape[1] - 1
        predicting = (part.prompt[:, None] - 1 + torch.arange(part.mask.shape[1])).clamp(max=last - 1)
        rows = torch.arange(len(part))[:, None]
        # Only the response's logits are normalised: prompts are often longer than responses.
        chosen = out.logits[rows, predicting].float() / self.temperature
        scores = chosen.log_softmax(-1).gather(-1, part.ids[rows, predicting + 1][..., None])[..., 0]
        return torch.where(part.mask, scores, torch.zeros_like(scores))


def dot(one: Parameters, other: Parameters) -> float:
    """The inner product of two vectors in parameter space, added in float64."""
    return math.fsum(
        torch.dot(each.flatten().double(), other[name].flatten().double()).item()
        for name, each in one.items()
    )


def check(
    scorer: Scorer,
    samples: Samples,
    directions: Callable[[int], Parameters],
    sketch: Tensor,
    reference: Reference,
) -> Check:
    """A comparison of the sketch with autograd, on a random combination of the tokens of a few responses.

    Args:
        scorer: of the target.
        samples: a few responses.
        directions: gives direction j, those of the reference first.
        sketch: [M, R + P] derivatives of their tokens along each direction.
        reference: the parts of the reference, and their products with the random directions.
    """
    generator = torch.Generator().manual_seed(1)
    coefficients = torch.randn(samples.mask.shape, generator=generator) * samples.mask
    exact = scorer.gradient(samples, coefficients)
    wanted = np.array([dot(directions(j), exact) for j in range(sketch.shape[1])])
    got = (coefficients[samples.mask].double() @ sketch.double()).numpy()
    error = float(np.sqrt(np.square(got - wanted).mean() / np.square(wanted).mean()))
    if sketch.shape[1] == len(reference):
        return Check(error, None)
    coordinates = reference.coordinates(got)
    square = coordinates[0] ** 2 + np.square(coordinates[1:]).mean()
    return Check(error, math.sqrt(square / dot(exact, exact)))


def inner(one: Array, other: Array) -> Any:
    """The inner products of gradients, from their coordinates [..., 1 + P]."""
    return one[..., 0] * other[..., 0] + (one[..., 1:] * other[..., 1:]).mean(-1)
