"""Every pass gives the log-probs and the gradient that the model gives for each row alone."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ctpo.tasks.arithmetic import model_path
from ctpo.training.scoring import Rows, Scorer, ScoringOptions
from ctpo.training.scoring.choose import PassChoice, SlowPassNote
from ctpo.training.scoring.head import token_log_probs
from ctpo.training.scoring.rows import packs, token_limit
from ctpo.training.scoring.tree import grow

VOCABULARY = 23
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def ragged() -> Rows:
    """Eight rows of four prompts, in groups of three, two, two and one, with tool tokens and with rows of one token."""
    draw = torch.Generator().manual_seed(0)
    parent = torch.tensor([2, 0, 0, 1, 3, 0, 1, 2])  # out of order, as after a shuffle
    prompts = torch.tensor([7, 4, 5, 2])[parent]
    lengths = torch.tensor([12, 5, 1, 9, 8, 12, 1, 3])
    prompt_ids = torch.randint(VOCABULARY, (4, 7), generator=draw)[parent]
    prompt_mask = (torch.arange(7)[None] >= 7 - prompts[:, None]).long()
    completion_ids = torch.randint(VOCABULARY, (8, 12), generator=draw)
    completion_mask = (torch.arange(12)[None] < lengths[:, None]).long()
    tool = (torch.arange(12) >= 3) & (torch.arange(12) < 5)
    return Rows(prompt_ids, prompt_mask, completion_ids, completion_mask, completion_mask.bool() & ~tool)


def one_by_one(model: Any, rows: Rows, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The definition: a softmax over all logits, of every row alone and without padding."""
    logps, entropies = [], []
    for i in range(len(rows)):
        prompt = rows.prompt_ids[i][rows.prompt_mask[i].bool()]
        completion = rows.completion_ids[i][rows.completion_mask[i].bool()]
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1] / temperature
        table = logits.log_softmax(-1)
        pad = rows.wanted.shape[1] - len(completion)
        logps.append(torch.nn.functional.pad(table.gather(1, completion[:, None])[:, 0], (0, pad)))
        entropies.append(torch.nn.functional.pad(-(table.exp() * table).sum(-1), (0, pad)))
    return torch.stack(logps) * rows.wanted, torch.stack(entropies) * rows.wanted


def gradient(model: Any, logps: Tensor) -> Tensor:
    weight = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (logps * weight).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def embedded() -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path())


def qwen3() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SMALL))


def mistral() -> Any:
    """Grouped query heads, and a window shorter than most rows."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pass_name", ["packed", "padded"])
def test_a_pass_equals_row_by_row(embedded: Any, pass_name: str, shared: bool) -> None:
    rows, scorer = ragged(), Scorer(ScoringOptions(share_prompts=shared), temperature=0.7)
    expected, entropies = one_by_one(embedded, rows, 0.7)
    wanted = gradient(embedded, expected)
    actual, actual_entropies = scorer.score(embedded, embedded, rows, pass_name)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(actual_entropies, entropies, atol=2e-5, rtol=1e-4)
    assert (gradient(embedded, actual) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("make", [qwen3, mistral])
def test_other_models_are_packed_too(make: Any) -> None:
    model, rows, scorer = make(), ragged(), Scorer(ScoringOptions())
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowPassNote)
        assert PassChoice(scorer).best(model, model) == "packed"
    expected = one_by_one(model, rows)[0]
    wanted = gradient(model, expected)
    actual = scorer.score(model, model, rows, "packed")[0]
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)
    assert (gradient(model, actual) - wanted).norm() < 1e-5 * wanted.norm()
    assert model.config._attn_implementation == "sdpa"


def test_learned_positions_are_right_without_padding() -> None:
    """TRL's padding on the left shifts positions, and the stream carries the right ones."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    model.transformer.wpe.weight.data.mul_(50)
    scorer, rows = Scorer(ScoringOptions()), ragged()
    assert PassChoice(scorer).best(model, model) == "packed"
    with torch.no_grad():
        actual = scorer.score(model, model, rows, "packed")[0]
        torch.testing.assert_close(actual, one_by_one(model, rows)[0], atol=2e-5, rtol=1e-5)
    with pytest.warns(SlowPassNote, match="plain pass, not the padded"):
        assert PassChoice(Scorer(ScoringOptions(pack_rows=False))).best(model, model) == "plain"


def test_a_model_that_scales_its_logits_falls_back_and_says_so() -> None:
    from transformers import CohereConfig, CohereForCausalLM

    settings = {name: value for name, value in SMALL.items() if name != "head_dim"}
    torch.manual_seed(0)
    model = CohereForCausalLM(CohereConfig(**settings, logit_scale=0.25))
    with pytest.warns(SlowPassNote, match="CohereForCausalLM is scored by the plain pass.*differ by"):
        assert PassChoice(Scorer(ScoringOptions())).best(model, model) == "plain"


def test_a_state_that_crosses_rows_is_noticed(embedded: Any) -> None:
    """With an attention that ignores the tree, packed rows would see each other."""
    scorer = Scorer(ScoringOptions())
    real = scorer._layout

    @contextmanager
    def ignoring(unwrapped: Any, rows: Rows, pass_name: str) -> Iterator[Any]:
        if pass_name == "packed":
            tree, targets = grow(rows, temperature=1.0, shared=True)
            yield targets, {"input_ids": tree.ids, "position_ids": tree.positions}
        else:
            with real(unwrapped, rows, pass_name) as layout:
                yield layout

    scorer._layout = ignoring  # type: ignore[method-assign]
    with pytest.warns(SlowPassNote, match="padded pass, not the packed"):
        assert PassChoice(scorer).best(embedded, embedded) == "padded"


def test_recomputed_layers_are_not_packed(embedded: Any) -> None:
    """Their backward pass runs them again after our contexts have ended, with the model's own layers."""
    rows, scorer = ragged(), Scorer(ScoringOptions())
    wanted = gradient(embedded, one_by_one(embedded, rows)[0])
    assert PassChoice(scorer).best(embedded, embedded) == "packed"
    word = "activation" if hasattr(embedded, "activation_checkpointing_enable") else "gradient"
    getattr(embedded, f"{word}_checkpointing_enable")()
    embedded.train()
    try:
        assert PassChoice(scorer).best(embedded, embedded) == "padded"
        actual = gradient(embedded, scorer.score(embedded, embedded, rows, "padded")[0])
    finally:
        embedded.eval()
        getattr(embedded, f"{word}_checkpointing_disable")()
    assert (actual - wanted).norm() / wanted.norm() < 1e-5


def test_the_stream_holds_every_needed_token_once() -> None:
    """It holds a shared prompt once, completions up to the token before the last wanted one, and no padding."""
    rows = ragged()
    reach = rows.reach().tolist()
    completions = sum(reach) - len(rows)
    assert grow(rows, temperature=1.0, shared=True)[0].ids.shape[1] == 7 + 4 + 5 + 2 + completions
    every = sum(rows.prompt_lengths().tolist()) + completions
    assert grow(rows, temperature=1.0, shared=False)[0].ids.shape[1] == every


def test_packs_keep_to_the_limit_and_groups_together() -> None:
    rows, chosen = ragged(), torch.tensor([0, 1, 2, 3, 5, 6])
    cost = {row: int(rows.reach()[row]) for row in range(8)}
    prompts, groups = rows.prompt_lengths().tolist(), rows.groups().tolist()
    for limit, shared in itertools.product((1, 13, 20, 30, 1000), (True, False)):
        actual = [part.tolist() for part in packs(rows, chosen, limit, shared=shared)]
        assert sorted(itertools.chain.from_iterable(actual)) == chosen.tolist()
        for part in actual:
            once = {groups[row]: prompts[row] for row in part}
            paid = sum(once.values()) if shared else sum(prompts[row] for row in part)
            assert len(part) == 1 or paid + sum(cost[row] for row in part) <= limit
    for limit in range(23, 60):  # rows 1, 2 and 5 are one group, of 23 tokens
        together = [part.tolist() for part in packs(rows, chosen, limit, shared=True)]
        assert {1, 2, 5} in [set(part) & {1, 2, 5} for part in together]
    assert [part.tolist() for part in packs(rows, chosen, None, shared=True)] == [chosen.tolist()]


def test_limit_grows_with_the_weights_share(embedded: Any) -> None:
    """The activations of a tiny model never matter, and bfloat16 halves them."""
    assert token_limit(embedded) > 10_000
    assert 256 <= token_limit(qwen3()) > 10_000
    assert token_limit(embedded, in_bfloat16=True) == pytest.approx(2 * token_limit(embedded), abs=1)


@pytest.mark.parametrize("kept", [0, 3 * 50 * 4, 10**6], ids=["recomputed", "partly", "kept"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_head_equals_log_softmax(kept: int, with_bias: bool) -> None:
    """In float64, in chunks, against autograd through the whole table."""
    torch.manual_seed(0)
    hidden = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(50, dtype=torch.float64, requires_grad=True) if with_bias else None
    ids, factor = torch.randint(50, (11,)), torch.randn(11, dtype=torch.float64)
    inputs = [hidden, weight] + ([bias] if bias is not None else [])
    table = (torch.nn.functional.linear(hidden, weight, bias) / 0.8).log_softmax(-1)
    expected = table.gather(1, ids[:, None])[:, 0]
    actual, entropies = token_log_probs(
        hidden, weight, bias, ids, temperature=0.8, kept_bytes=2 * kept, chunk_bytes=3 * 50 * 4
    )
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(entropies, -(table.exp() * table).sum(-1), atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad((actual * factor).sum(), inputs),
        torch.autograd.grad((expected * factor).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_head_survives_extreme_logits() -> None:
    """A certain token has log-prob 0 and no gradient. A nearly impossible one has a finite log-prob."""
    hidden = torch.tensor([[100.0, 0.0], [100.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[10.0, 0.0], [-10.0, 0.0]])
    logps, entropies = token_log_probs(hidden, weight, None, torch.tensor([0, 1]))
    assert logps.tolist() == [0.0, -2000.0]
    assert entropies.tolist() == [0.0, 0.0]
    logps[0].backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.zeros(2, 2))


def test_head_in_bfloat16_sums_in_float32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(8, 16).bfloat16(), torch.randn(300, 16).bfloat16()
    exact = (hidden.float() @ weight.float().t()).log_softmax(-1)[:, 7]
    actual, _ = token_log_probs(hidden, weight, None, torch.full((8,), 7))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, exact, atol=0.06, rtol=0)
