"""Drawing the next token.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.errors import UserError

_BLOCK = 256
"""How many vocabulary entries one block has. A running sum over a whole large vocabulary would cost as much as the
softmax; a running sum over blocks, and then over one block, is cheap."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Example:
        Sampling(max_new_tokens=4, temperature=0.7).fits([1, 2, 3], context=8)  # True
    """

    max_new_tokens: int
    """The longest response in tokens. The tool's tokens count too, as in TRL's completion length."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int = 0
    """Keep only the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens whose probability reaches this."""

    def fits(self, prompt: Sequence[int], context: int | None) -> bool:
        """Whether a context of so many tokens (None for no limit) has room for the prompt and the longest response."""
        return context is None or len(prompt) + self.max_new_tokens <= context

    def check_prompts(
        self,
        prompts: Sequence[Sequence[int]],
        context: int | None,
        *,
        owner: str = "the model",
        advice: str = "shorten the prompt or lower max_new_tokens",
    ) -> None:
        """Check that every prompt can be continued.

        Args:
            prompts: the token ids of each prompt.
            context: how many tokens a prompt and its response may have together; None for no limit.
            owner, advice: for the error message: whose context it is, and how to correct a prompt that is too long.

        Raises:
            UserError: if a prompt is empty or leaves no room in the context.
        """
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"prompt {i} is empty; a model needs at least one token to continue")
            if not self.fits(prompt, context):
                raise UserError(
                    f"prompt {i} has {len(prompt)} tokens, which with max_new_tokens={self.max_new_tokens} "
                    f"exceeds {owner}'s context of {context}; {advice}"
                )


def sample_tokens(
    logits_BV: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    uniforms_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token for each row, with its log-probability. At temperature 0 it is the most probable token.

    Args:
        logits_BV: unnormalised scores, [B, V].
        temperature, top_k, top_p: see `Sampling`.
        generator: the source of randomness; torch's global one if None.
        uniforms_B: the random numbers themselves, [B] in [0, 1); then no generator is used.

    Returns:
        The tokens [B] and their log-probabilities [B] in nats, under softmax(logits / temperature) *before* top-k and
        top-p cut it. A trainer recomputes the same quantity from the same logits. At temperature 0 the
        log-probabilities are those of temperature 1.
    """
    scaled_BV = logits_BV.float() if temperature in (0.0, 1.0) else logits_BV.float() / temperature
    if temperature == 0.0:
        tokens_B = scaled_BV.argmax(dim=-1)
        return tokens_B, _gathered(scaled_BV, tokens_B) - scaled_BV.logsumexp(dim=-1)
    peak_B1 = scaled_BV.amax(dim=-1, keepdim=True)
    # Proportional to the probabilities. This costs one exponential per entry and no division.
    weights_BV = (scaled_BV - peak_B1).exp_()
    total_B = weights_BV.sum(dim=-1)
    if uniforms_B is None:
        uniforms_B = torch.rand(len(weights_BV), generator=generator, device=weights_BV.device)
    tokens_B = _inverse_cdf(_truncate(weights_BV, top_k, top_p), uniforms_B)
    return tokens_B, _gathered(scaled_BV, tokens_B) - peak_B1.squeeze(-1) - total_B.log()


def _gathered(values_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """The value of each row's token, [B]."""
    return values_BV.gather(-1, tokens_B[:, None]).squeeze(-1)


def _truncate(weights_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """The weights with those of tokens outside top-k and top-p set to 0."""
    if 0 < top_k < weights_BV.shape[-1]:
        threshold_B1 = weights_BV.topk(top_k, dim=-1).values[:, -1:]
        weights_BV = torch.where(weights_BV < threshold_B1, 0.0, weights_BV)
    if top_p < 1.0:
        sorted_BV, order_BV = weights_BV.sort(dim=-1, descending=True)
        # A token is cut if the tokens before it already have a share of top_p of the remaining weight.
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
        cut_BV = before_BV >= top_p * sorted_BV.sum(dim=-1, keepdim=True)
        weights_BV = weights_BV.scatter(-1, order_BV, torch.where(cut_BV, 0.0, sorted_BV))
    return weights_BV


def _inverse_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Tokens drawn with one uniform number per row. `multinomial` and Gumbel noise need one per vocabulary entry."""
    uniform_B1 = uniforms_B[:, None]
    vocabulary = weights_BV.shape[-1]
    if vocabulary < 2 * _BLOCK:
        return _search(weights_BV, uniform_B1 * weights_BV.sum(dim=-1, keepdim=True))[0].squeeze(-1)
    if vocabulary % _BLOCK:
        weights_BV = torch.nn.functional.pad(weights_BV, (0, -vocabulary % _BLOCK))
    blocks_BNM = weights_BV.unflatten(-1, (-1, _BLOCK))  # type: ignore[no-untyped-call]
    mass_BN = blocks_BNM.sum(dim=-1)
    block_B1, rest_B1 = _search(mass_BN, uniform_B1 * mass_BN.sum(dim=-1, keepdim=True))
    chosen_BM = blocks_BNM.gather(1, block_B1[..., None].expand(-1, -1, _BLOCK)).squeeze(1)
    return (block_B1 * _BLOCK + _search(chosen_BM, rest_B1)[0]).squeeze(-1)


def _search(weights_BN: Tensor, target_B1: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry at which the running sum exceeds the target, and the part of the target that lies within it."""
    cdf_BN = weights_BN.contiguous().cumsum(dim=-1)
    # right=True takes the first entry whose running sum exceeds the target, so weight 0 is never drawn.
    index_B1 = torch.searchsorted(cdf_BN, target_B1, right=True)
    # The target may round up to the total itself. Then the last entry that raises the running sum is meant.
    last_B1 = (cdf_BN < cdf_BN[:, -1:]).sum(dim=-1, keepdim=True)
    index_B1 = torch.minimum(index_B1, last_B1)
    before_B1 = cdf_BN.gather(-1, index_B1) - weights_BN.gather(-1, index_B1)
    return index_B1, (target_B1 - before_B1).clamp(min=0.0)
