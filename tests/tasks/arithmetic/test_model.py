"""The shipped model loads, is small, is not disturbed by padding, and writes the right format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import model_path
from ctpo.tasks.arithmetic.task import terms

TASK = get_task("arithmetic")
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the fast setting for so small a model
    yield AutoModelForCausalLM.from_pretrained(model_path()), AutoTokenizer.from_pretrained(model_path())
    torch.set_num_threads(threads)


def test_it_is_small_and_in_float32(loaded: Loaded) -> None:
    model, _ = loaded
    assert sum(p.numel() for p in model.parameters()) < 65_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(file.stat().st_size for file in model_path().iterdir()) < 512 * 1024


def test_left_padding_does_not_change_what_it_computes(loaded: Loaded) -> None:
    model, tokenizer = loaded
    prompt = "3+67+77-29+5-41="
    alone = tokenizer(prompt, return_tensors="pt")
    padded = tokenizer([prompt, "11+22+33+44+55+66-77-88-99="], padding=True, return_tensors="pt")
    assert padded["attention_mask"][0, 0] == 0
    with torch.inference_mode():
        expected, got = model(**alone).logits[0, -1], model(**padded).logits[0, -1]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_its_first_step_asks_the_tool_for_the_first_two_operands(loaded: Loaded) -> None:
    model, tokenizer = loaded
    prompts = [problem.prompt for problem in TASK.problems("test", 128, 0)]
    stop = tokenizer.convert_tokens_to_ids("</py>")
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    out = model.generate(**batch, do_sample=False, max_new_tokens=12, eos_token_id=stop)
    texts = tokenizer.decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    wanted = []
    for prompt in prompts:
        (_, first), (sign, second), *_ = terms(prompt)
        wanted.append(f"<py>print({first}{sign}{second})</py>")
    right = sum(text == want for text, want in zip(texts, wanted, strict=True))
    assert right >= 0.9 * len(prompts)
