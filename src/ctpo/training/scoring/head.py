"""The language-model head on chosen tokens only, without all of their logits in memory at once.

For one token with hidden state h, target y and weights W: z = hWᵀ, log p_y = z_y − log Σ e^z, and
∂log p_y/∂z = onehot(y) − softmax(z). Autograd would keep several [tokens, vocabulary] tensors for this. Here at most
one is kept, E' = e^(z − max z) − Z·onehot(y) with Z = Σ e^(z − max z), from which both gradients follow. Beyond a limit
of bytes E' is recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CHUNK_BYTES = 1 << 26
"""Size of one chunk of float32 logits."""
_KEPT_BYTES = 1 << 28
"""Size of the exponentials that the forward pass keeps for the backward pass."""


@dataclass(frozen=True)
class Targets:
    """The M tokens to score."""

    source: Tensor
    """[M] where the hidden state that predicts each token stands among the flattened [tokens, width] states."""
    ids: Tensor
    """[M] the tokens."""
    temperature: float = 1.0
    """The divisor of the logits."""


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    kept_bytes: int = _KEPT_BYTES,
    chunk_bytes: int = _CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Log-probs [M] and entropies [M] of a softmax over the vocabulary, in nats, computed in chunks of tokens.

    log p = z_y − log Σ_v e^{z_v}, H = log Σ_v e^{z_v} − Σ_v p_v z_v, z = (hWᵀ + b) / temperature

    Args:
        hidden: [M, D] hidden states.
        weight: [V, D].
        bias: [V], or None.
        ids: [M] the tokens to score.
        temperature: the divisor of the logits.
        kept_bytes: how many bytes of exponentials the forward pass keeps for the backward pass, which recomputes the
            others.
        chunk_bytes: size of the logits of one chunk.

    Returns:
        The log-probs, at most 0, in float32 or wider, differentiable; and the entropies, at least 0, without gradient.
    """
    hidden = (hidden if temperature == 1.0 else hidden / temperature).to(weight.dtype)
    if bias is not None and temperature != 1.0:
        bias = bias / temperature
    rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    apply: Callable[..., tuple[Tensor, Tensor]] = _TokenLogProbs.apply
    return apply(hidden, weight, bias, ids, rows, kept_bytes)


class _TokenLogProbs(torch.autograd.Function):
    """`token_log_probs` as one step of the autograd graph. It keeps the first exponentials, as far as they fit."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, rows: int, kept_bytes: int
    ) -> tuple[Tensor, Tensor]:
        count, vocabulary = hidden.shape[0], weight.shape[0]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logps, entropies = hidden.new_empty(2, count, dtype=wide).unbind()
        peak, total = hidden.new_empty(2, count, dtype=wide).unbind()
        backward = any(ctx.needs_input_grad[:3])
        held = (
            min(count, kept_bytes // (vocabulary * weight.element_size())) // rows * rows if backward else 0
        )
        held = count if backward and count * vocabulary * weight.element_size() <= kept_bytes else held
        kept = hidden.new_empty(held, vocabulary)
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            logits = _logits(hidden[part], weight, bias)
            peak[part] = logits.amax(dim=1)
            logits.sub_(peak[part, None])
            at_target = logits.gather(1, ids[part, None])
            powers = logits.exp()
            total[part] = powers.sum(dim=1)
            log_total = total[part].log()
            logps[part] = at_target[:, 0] - log_total
            entropies[part] = log_total - torch.linalg.vecdot(powers, logits) / total[part]
            if part.stop <= held:
                _less_target(powers, ids[part], total[part])
                kept[part] = powers
        if backward:
            ctx.save_for_backward(hidden, weight, bias, ids, peak, total, kept)
            ctx.rows = rows
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, peak, total, kept = ctx.saved_tensors
        scale = (-grads[0] / total).to(hidden.dtype)
        scaled = hidden * scale[:, None]
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        held = kept.shape[0]
        parts = [slice(0, held)] if held else []
        parts += [slice(i, min(i + ctx.rows, len(ids))) for i in range(held, len(ids), ctx.rows)]
        for part in parts:
            powers = kept if part.stop <= held else _powers(hidden, weight, bias, ids, peak, total, part)
            torch.mm(powers, weight, out=d_hidden[part])
            if d_weight is not None:
                d_weight.addmm_(powers.t(), scaled[part])
            if d_bias is not None:
                d_bias.addmv_(powers.t(), scale[part])
        return d_hidden.mul_(scale[:, None]), d_weight, d_bias, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden @ weight.t()
    logits = logits if bias is None else logits.add_(bias)
    return logits.float() if logits.element_size() < 4 else logits


def _powers(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, peak: Tensor, total: Tensor, part: slice
) -> Tensor:
    powers = _logits(hidden[part], weight, bias).sub_(peak[part, None]).exp_()
    _less_target(powers, ids[part], total[part])
    return powers.to(hidden.dtype)


def _less_target(powers: Tensor, ids: Tensor, total: Tensor) -> None:
    """Subtract Z·onehot(y) from the exponentials, in place.

    It is done before any product, so that a token of probability near 1 keeps the digits of 1 − p.
    """
    powers.scatter_add_(1, ids[:, None], -total[:, None])


@contextmanager
def scoring_head(
    head: nn.Linear, targets: Targets, *, float32: bool = False, states: list[Tensor] | None = None
) -> Iterator[None]:
    """A context in which `head` returns [1, M, 2], the log-prob and entropy of each target, instead of logits.

    The exchange happens inside the model's own forward pass, so that everything that wraps the model (DDP, PEFT, mixed
    precision) sees an ordinary call.

    Args:
        head: the model's output layer.
        targets: the tokens to score.
        float32: whether the head computes in float32 under autocast too.
        states: gets the hidden states [M, D] of the targets, without gradient.
    """
    attributes = head.__dict__
    before = attributes.get("forward")

    def forward(hidden: Tensor) -> Tensor:
        device = hidden.device.type
        chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, targets.source)
        if states is not None:
            states.append(chosen.detach())
        weight: Tensor = head.weight
        bias: Tensor | None = head.bias
        if torch.is_autocast_enabled(device) and not float32:
            dtype = torch.get_autocast_dtype(device)
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return torch.stack(
                token_log_probs(chosen, weight, bias, targets.ids, temperature=targets.temperature), dim=-1
            )[None]

    attributes["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del attributes["forward"]
        else:
            attributes["forward"] = before
