"""The sampler against the distribution it claims to draw from."""

from __future__ import annotations

import pytest
import torch

from ctpo.rollout.sampling import sample_tokens

DRAWS = 200_000


def frequencies(logits: torch.Tensor, **options: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens, _ = sample_tokens(logits.expand(DRAWS, -1), generator=generator, **options)
    return torch.bincount(tokens, minlength=logits.numel()) / DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -torch.inf, 1.1])
    expected = (logits / temperature).softmax(-1)
    error = (frequencies(logits, temperature=temperature) - expected).abs()
    assert error.max() < 5 * (0.25 / DRAWS) ** 0.5  # five standard errors
    assert frequencies(logits, temperature=temperature)[4] == 0  # impossible stays impossible


@pytest.mark.parametrize("vocabulary", [1024, 1300])
def test_a_large_vocabulary_is_searched_block_by_block(vocabulary: int) -> None:
    """Token i is drawn where the uniform number falls into its part of the running sum, in every block."""
    weights = torch.rand(vocabulary, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 4
    weights[[0, 255, 256, vocabulary - 1]] = 0.0
    rows = 4096
    logits = weights.log().float().expand(rows, -1)
    tokens, _ = sample_tokens(logits, generator=torch.Generator().manual_seed(5))
    uniform = torch.rand(rows, 1, generator=torch.Generator().manual_seed(5)).squeeze(-1).double()
    cdf = weights.cumsum(0) / weights.sum()
    low, high = (cdf - weights / weights.sum())[tokens], cdf[tokens]
    assert (low - 1e-5 <= uniform).all()
    assert (uniform <= high + 1e-5).all()
    assert (weights[tokens] > 0).all()


def test_top_k_and_top_p_cut_and_renormalise() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert frequencies(logits, top_k=2)[2:].sum() == 0
    torch.testing.assert_close(frequencies(logits, top_k=2)[0], torch.tensor(0.625), atol=6e-3, rtol=0)
    nucleus = frequencies(logits, top_p=0.79)  # .5 + .3 reaches .79, the third is cut
    assert nucleus[2:].sum() == 0
    assert frequencies(logits, top_p=0.81)[2] > 0  # .8 does not reach .81: one more is needed
    assert frequencies(logits, top_p=1e-9)[0] == 1  # never nothing


def test_log_probs_are_of_the_whole_distribution() -> None:
    logits = torch.randn(64, 11)
    for options in ({}, {"top_k": 3}, {"temperature": 0.7, "top_p": 0.9}):
        tokens, logps = sample_tokens(logits, **options)
        scaled = logits / options.get("temperature", 1.0)
        torch.testing.assert_close(logps, scaled.log_softmax(-1)[torch.arange(64), tokens])


def test_zero_temperature_is_greedy_with_log_probs_at_one() -> None:
    logits = torch.randn(32, 9)
    tokens, logps = sample_tokens(logits, temperature=0.0)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logps, logits.log_softmax(-1).amax(-1))


def test_rounding_at_the_end_of_the_cdf_draws_a_possible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform number of (almost) 1 must draw a token, and none of probability 0."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(*shape))
    tokens, _ = sample_tokens(torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]]))
    assert tokens.tolist() == [1]
    long = torch.full((1, 1300), -torch.inf)
    long[0, 700] = 0.0
    assert sample_tokens(long)[0].tolist() == [700]
