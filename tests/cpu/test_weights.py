"""bfloat16 for the time of sampling: the weights come back, and what is reported is what was sampled from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ctpo.cpu.weights import bfloat16_products
from ctpo.rollout import TransformersEngine
from ctpo.rollout.local.decoders import RaggedDecoder, decoder_for
from ctpo.rollout.sampling import Sampling
from ctpo.tasks.arithmetic import model_path

PROMPTS = [[3, 4, 5, 6], [7, 8], [3, 4, 5, 6]]


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path())


def test_weights_come_back_as_they_were(model: Any) -> None:
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = head.weight is embedding.weight

    def interrupted() -> None:
        with bfloat16_products(model):
            assert head.weight.dtype is torch.bfloat16
            assert embedding.weight.dtype is torch.float32
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    assert (head.weight is embedding.weight) == tied
    for name, parameter in model.named_parameters():
        same, value = before[name]
        assert parameter is same
        assert torch.equal(parameter, value)


def test_log_probs_are_those_of_the_forward_pass_under_autocast(model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    engine = TransformersEngine(model, tokenizer, eos_token_ids=[-1], in_bfloat16=True)
    draw = torch.Generator().manual_seed(0)
    rollouts = engine.generate(PROMPTS, Sampling(max_new_tokens=12), generator=draw)
    gaps = {}
    for name, enabled in (("bfloat16", True), ("float32", False)):
        found, expected = [], []
        for rollout in rollouts:
            ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                table = model(ids).logits[0].float().log_softmax(-1)
            rows = torch.arange(len(rollout.prompt_ids) - 1, ids.shape[1] - 1)
            expected.append(table[rows, ids[0, rows + 1]])
            found.append(torch.tensor(rollout.logps))
        gaps[name] = float((torch.cat(found) - torch.cat(expected)).abs().mean())
    assert gaps["bfloat16"] < gaps["float32"] < 0.05


def test_the_cache_is_kept_in_bfloat16(model: Any) -> None:
    with torch.no_grad(), bfloat16_products(model):
        decoder = decoder_for(model, 0)
        assert isinstance(decoder, RaggedDecoder)
        decoder.start(PROMPTS)
        layer = decoder._cache.layers[0]
        assert layer.keys.dtype is layer.values.dtype is torch.bfloat16
