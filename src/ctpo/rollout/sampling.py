"""Drawing the next token.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_tokens(
    logits_BV: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    uniforms_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row; with temperature 0, take the most probable one.

    Args:
        logits_BV: unnormalised scores, [B, V].
        temperature: divides the logits; 0 is greedy.
        top_k: keep only the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose probability reaches this.
        generator: source of randomness; torch's global one if None.
        uniforms_B: the random numbers themselves, [B] in [0, 1), instead of a generator.

    Returns:
        tokens [B] and their log-probabilities [B] in nats, under softmax(logits / temperature) *before*
        top-k and top-p cut it (the quantity a trainer recomputes from the same logits). At temperature 0
        the log-probabilities are those at temperature 1.
    """
    scaled_BV = logits_BV.float() if temperature in (0.0, 1.0) else logits_BV.float() / temperature
    logps_BV = scaled_BV.log_softmax(dim=-1)
    if temperature == 0.0:
        tokens_B = logps_BV.argmax(dim=-1)
    else:
        probs_BV = _truncate(logps_BV.exp(), top_k, top_p)
        if uniforms_B is None:
            shape = (len(probs_BV),)
            uniforms_B = torch.rand(shape, generator=generator, device=probs_BV.device, dtype=probs_BV.dtype)
        tokens_B = _inverse_cdf(probs_BV, uniforms_B)
    return tokens_B, logps_BV.gather(-1, tokens_B[:, None]).squeeze(-1)


def _truncate(probs_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    if 0 < top_k < probs_BV.shape[-1]:
        threshold_B1 = probs_BV.topk(top_k, dim=-1).values[:, -1:]
        probs_BV = torch.where(probs_BV < threshold_B1, 0.0, probs_BV)
    if top_p < 1.0:
        sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
        # A token is cut when the mass of those before it already reaches top_p of what is left.
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        cut_BV = before_BV >= top_p * sorted_BV.sum(dim=-1, keepdim=True)
        probs_BV = probs_BV.scatter(-1, order_BV, torch.where(cut_BV, 0.0, sorted_BV))
    return probs_BV


def _inverse_cdf(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """One uniform number a row instead of one a vocabulary entry (multinomial, Gumbel): cheap for large V."""
    cdf_BV = probs_BV.cumsum(dim=-1)
    target_B1 = uniforms_B[:, None] * cdf_BV[:, -1:]
    # right=True: the first entry whose cdf exceeds the target, so an entry of probability 0 is never drawn.
    tokens_B = torch.searchsorted(cdf_BV, target_B1, right=True).squeeze(-1)
    # uniform * total may round up to the total itself; the last entry that raises the cdf is the one meant.
    last_B = (cdf_BV < cdf_BV[:, -1:]).sum(dim=-1)
    return torch.minimum(tokens_B, last_B)
