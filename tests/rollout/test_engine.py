"""The engine against the model itself: recomputed log-probs, `generate`, and the tool protocol."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from ctpo.rollout import Rollout, ToolRunner, TransformersEngine
from ctpo.rollout.local.decoders import PaddedDecoder, RaggedDecoder
from ctpo.rollout.sampling import Sampling

SAMPLING = Sampling(max_new_tokens=96)


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@pytest.fixture(scope="module")
def prompts(embedded: Any, arithmetic: Any) -> list[list[int]]:
    problems = arithmetic.problems("test", 24, 3)
    return encode(embedded[1], [problem.prompt for problem in problems for _ in range(4)])


@pytest.fixture(scope="module")
def rollouts(embedded: Any, arithmetic: Any, sandbox: Any, prompts: list[list[int]]) -> list[Rollout]:
    generator = torch.Generator().manual_seed(0)
    tools = ToolRunner(arithmetic.tool, sandbox)
    return TransformersEngine(*embedded).generate(prompts, SAMPLING, partner=tools, generator=generator)


def recomputed(model: Any, rollout: Rollout) -> torch.Tensor:
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    with torch.no_grad():
        logps = model(ids).logits[0].log_softmax(-1)[len(rollout.prompt_ids) - 1 : -1]
    return logps[torch.arange(len(rollout.completion_ids)), torch.tensor(rollout.completion_ids)]


def test_log_probs_equal_one_forward_pass_over_the_final_sequence(
    embedded: Any, rollouts: list[Rollout]
) -> None:
    assert sum(bool(rollout.calls) for rollout in rollouts) > len(rollouts) // 2
    for rollout in rollouts:
        mask = torch.tensor(rollout.response_mask, dtype=torch.bool)
        got = torch.tensor(rollout.logps)
        torch.testing.assert_close(got[mask], recomputed(embedded[0], rollout)[mask], atol=1e-4, rtol=0)
        assert not got[~mask].any()


def test_tool_output_is_inserted_verbatim_and_masked(embedded: Any, rollouts: list[Rollout]) -> None:
    tokenizer = embedded[1]
    for rollout in rollouts:
        inserted = [
            t for t, own in zip(rollout.completion_ids, rollout.response_mask, strict=True) if not own
        ]
        assert tokenizer.decode(inserted) == "".join(call.output for call in rollout.calls)
        text = tokenizer.decode(rollout.completion_ids)
        for call in rollout.calls:
            assert f"<py>{call.program}</py>{call.output}" in text
            if call.status == "ok":
                expression = call.program.removeprefix("print(").removesuffix(")")
                assert call.output == f"<out>{eval(expression)}</out>"


def test_lengths_agree_and_finished_rows_end_with_eos(embedded: Any, rollouts: list[Rollout]) -> None:
    eos = embedded[1].eos_token_id
    for rollout in rollouts:
        assert len(rollout.completion_ids) == len(rollout.response_mask) == len(rollout.logps) > 0
        assert rollout.finished == (rollout.completion_ids[-1] == eos)
        assert eos not in rollout.completion_ids[:-1]


@pytest.mark.parametrize("decoder", [RaggedDecoder, PaddedDecoder])
def test_decoders_use_nothing_that_transformers_announces_to_remove(
    embedded: Any, prompts: list[list[int]], decoder: type[RaggedDecoder | PaddedDecoder]
) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", FutureWarning)
        rows = decoder(embedded[0], 0)
        tokens = rows.start(prompts[:8]).argmax(-1)
        rows.step(tokens, torch.ones_like(tokens))


def test_greedy_equals_generate(embedded: Any, prompts: list[list[int]]) -> None:
    """Without a tool: prompts of different lengths and rows that leave the batch change nothing."""
    model, tokenizer = embedded
    chosen = prompts[::4]
    assert len(set(map(len, chosen))) > 1
    ours = TransformersEngine(model, tokenizer).generate(chosen, Sampling(max_new_tokens=40, temperature=0.0))
    for prompt, rollout in zip(chosen, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        assert rollout.completion_ids == theirs


def test_batches_and_padding_do_not_change_a_response(embedded: Any, prompts: list[list[int]]) -> None:
    greedy = Sampling(max_new_tokens=40, temperature=0.0)
    together = TransformersEngine(*embedded).generate(prompts, greedy)
    in_fives = TransformersEngine(*embedded, batch_size=5).generate(prompts, greedy)
    assert [r.completion_ids for r in together] == [r.completion_ids for r in in_fives]


def test_what_all_prompts_begin_with_is_read_once(embedded: Any) -> None:
    """The logits equal those of each prompt alone, and the common tokens go through the model once."""
    from ctpo.rollout.local.decoders import RaggedDecoder

    model, tokenizer = embedded
    [beginning] = encode(tokenizer, ["3+67+77-29+5-41=31+22-10+9"])
    ends = encode(tokenizer, ["+5-4", "7", "-88+12+3", "7"])
    prompts = [beginning + end for end in ends] + [beginning]
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: read.append(inputs[0].numel())
    )
    try:
        with torch.no_grad():
            logits = RaggedDecoder(model, 0).start(prompts)
    finally:
        hook.remove()
    assert sum(read) < 2 * len(beginning) + 5 * max(map(len, ends))
    for prompt, got in zip(prompts, logits, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(got, model(torch.tensor([prompt])).logits[0, -1], atol=1e-4, rtol=0)


def test_a_generator_makes_it_repeatable_and_leaves_global_randomness_alone(
    embedded: Any, prompts: list[list[int]]
) -> None:
    before = torch.get_rng_state()
    runs = [
        TransformersEngine(*embedded).generate(
            prompts[:8], SAMPLING, generator=torch.Generator().manual_seed(7)
        )
        for _ in range(2)
    ]
    assert [r.completion_ids for r in runs[0]] == [r.completion_ids for r in runs[1]]
    assert torch.equal(before, torch.get_rng_state())


def test_training_mode_is_restored(embedded: Any, prompts: list[list[int]]) -> None:
    model, tokenizer = embedded
    model.train()
    try:
        TransformersEngine(model, tokenizer).generate(prompts[:2], Sampling(max_new_tokens=2))
        assert model.training
    finally:
        model.eval()


def test_output_that_does_not_fit_is_cut_at_the_length_limit(
    embedded: Any, arithmetic: Any, sandbox: Any, prompts: list[list[int]]
) -> None:
    tools = ToolRunner(arithmetic.tool, sandbox)
    generator = torch.Generator().manual_seed(0)
    for limit in (9, 10, 11, 12):
        found = TransformersEngine(*embedded).generate(
            prompts, Sampling(max_new_tokens=limit), partner=tools, generator=generator
        )
        assert max(len(rollout.completion_ids) for rollout in found) == limit


def test_calls_beyond_the_limit_are_not_run(
    embedded: Any, arithmetic: Any, sandbox: Any, prompts: Any
) -> None:
    from dataclasses import replace

    tools = ToolRunner(replace(arithmetic.tool, max_calls=1), sandbox)
    generator = torch.Generator().manual_seed(0)
    found = TransformersEngine(*embedded).generate(prompts[:16], SAMPLING, partner=tools, generator=generator)
    assert max(len(rollout.calls) for rollout in found) == 1


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [([], 4, "prompt 0 is empty"), ([5] * 200, 96, "exceeds the model's context")],
)
def test_impossible_prompts_are_refused(embedded: Any, prompt: list[int], tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformersEngine(*embedded).generate([prompt], Sampling(max_new_tokens=tokens))


def test_no_prompts_give_no_responses(embedded: Any) -> None:
    assert TransformersEngine(*embedded).generate([], SAMPLING) == []
