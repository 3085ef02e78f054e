"""A tiny chat model that has learnt four conversations with a Python tool by heart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ctpo.tasks import CHAT_TOOL, Problem, Task

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NATIVE = (
    "{% if tools %}{{ '<tools>' + (tools | tojson) + '</tools>' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{% for c in m.tool_calls %}{{ '\\n<tool_call>\\n' + (c.function | tojson) + '\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALKS = {  # question: program, what it prints, last words
    "a": ("print(6*7)", "42", "\\boxed{42}"),
    "bb": ("print('x'*40)", "x" * 40, "many"),
    "ccc": ("print(1/0)", None, "ouch"),
    "dddd": ("print('<|im_'+'end|>')", "<|im_end|>", "text"),
}
SYSTEM = "Use ```python."


def make_tokenizer(template: str | None = CHATML) -> Any:
    """A tokenizer with one token per byte, ChatML's two special tokens, and one of two backticks, as real ones have."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pair = ("`", "`")
    vocabulary = {letter: i for i, letter in enumerate([*letters, "".join(pair)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[pair]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", padding_side="left"
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(tokenizer: Any, *, seed: int = 0, **sizes: int) -> Any:
    """A tiny random Llama for this tokenizer, with one layer of width 32 unless other sizes are given."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        **sizes,
    }
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), eos_token_id=end, pad_token_id=end, bos_token_id=None, **config
        )
    )


@pytest.fixture(scope="session")
def chat_tokenizer() -> Callable[..., Any]:
    return make_tokenizer


@pytest.fixture(scope="session")
def chat_task() -> Task:
    def problems(split: str, count: int, seed: int) -> list[Problem]:
        return [Problem(prompt=each, answer=TALKS[each][2], id=each) for each in TALKS][:count]

    def check(completion: str, answer: str) -> bool:
        return completion.strip().endswith(answer)

    return Task(name="talk", problems=problems, check=check, tool=CHAT_TOOL, system=SYSTEM)


@pytest.fixture(scope="session")
def chat_model(chat_task: Task, sandbox: Any) -> Any:
    """A model trained for a few seconds on the conversations as the chat template renders them."""
    import torch

    from ctpo.rollout.chat import encode_prompt, task_format

    tokenizer = make_tokenizer()
    model = make_model(
        tokenizer,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    form = task_format(tokenizer, chat_task)
    assert form is not None
    rows, weights = [], []
    for question, (program, _, last) in TALKS.items():
        result = sandbox.run([program])[0]
        output = CHAT_TOOL.body(CHAT_TOOL.render(result.status, result.stdout, result.stderr))
        printed = form.result_ids(tokenizer, form.calls(f"```python\n{program}\n```", ended=False), [output])
        parts = [
            (encode_prompt(tokenizer, chat_task, question), 0.0),
            (tokenizer.encode(f"```python\n{program}\n```"), 1.0),
            (printed, 0.0),
            (tokenizer.encode(f"{last}<|im_end|>"), 1.0),
        ]
        rows.append([token for ids, _ in parts for token in ids])
        weights.append([weight for ids, weight in parts for _ in ids])
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    weight = torch.tensor([row + [0.0] * (width - len(row)) for row in weights])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):  # how many it takes depends on the processor
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (loss * weight[:, 1:].flatten()).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    assert loss.item() < 0.05
    return model.eval(), tokenizer
