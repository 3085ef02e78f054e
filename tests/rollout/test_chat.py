"""Chat templates, and whole conversations with a tool by a model that has learnt them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ctpo.errors import UserError
from ctpo.rollout import ToolRunner, TransformersEngine
from ctpo.rollout.chat import encode_prompt, task_format
from ctpo.rollout.local.decoders import PaddedDecoder, RaggedDecoder, decoder_for
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import CHAT_TOOL, PythonTool, Task, get_task

from .conftest import CHATML, NATIVE, TALKS

GREEDY = Sampling(max_new_tokens=400, temperature=0.0)


def converse(
    model: Any, task: Task, sandbox: Any, questions: list[str], sampling: Sampling, **options: Any
) -> Any:
    engine = TransformersEngine(*model, **options)
    prompts = [encode_prompt(model[1], task, question) for question in questions]
    generator = torch.Generator().manual_seed(0)
    return engine.generate(prompts, sampling, partner=ToolRunner(task.tool, sandbox), generator=generator)


def test_a_conversation_grows_as_the_template_renders_it(
    chat_model: Any, chat_task: Task, sandbox: Any
) -> None:
    tokenizer = chat_model[1]
    for question, rollout in zip(
        TALKS, converse(chat_model, chat_task, sandbox, list(TALKS), GREEDY), strict=True
    ):
        program, printed, last = TALKS[question]
        assert [call.program.strip() for call in rollout.calls] == [program]
        body = rollout.calls[0].output
        assert printed in (None, body)
        assert printed or "ZeroDivisionError" in body
        whole = [
            *chat_task.messages(question),
            {"role": "assistant", "content": f"```python\n{program}\n```"},
            {"role": "tool", "content": body},
            {"role": "assistant", "content": last},
        ]
        expected = tokenizer.apply_chat_template(whole, tokenize=False).removesuffix("\n")
        assert tokenizer.decode(rollout.prompt_ids + rollout.completion_ids) == expected
        assert rollout.finished


def test_printed_special_tokens_are_text(chat_model: Any, chat_task: Task, sandbox: Any) -> None:
    (rollout,) = converse(chat_model, chat_task, sandbox, ["dddd"], GREEDY)
    own = torch.tensor(rollout.response_mask, dtype=torch.bool)
    inserted = torch.tensor(rollout.completion_ids)[~own]
    # The template's own end of the assistant's turn and of the tool's; the printed one is ten bytes.
    assert (inserted == chat_model[1].eos_token_id).sum() == 2
    assert chat_model[1].decode(inserted).count("<|im_end|>") == 3


@pytest.mark.parametrize("ragged", [True, False])
def test_log_probs_of_ragged_tool_turns_are_exact(
    chat_model: Any, chat_task: Task, sandbox: Any, monkeypatch: pytest.MonkeyPatch, ragged: bool
) -> None:
    model, _ = chat_model
    assert isinstance(decoder_for(model, 0), RaggedDecoder)
    if not ragged:
        monkeypatch.setattr("ctpo.rollout.local.engine.decoder_for", PaddedDecoder)
    questions = [question for question in TALKS for _ in range(4)]
    sampling = Sampling(max_new_tokens=260, temperature=1.2)
    rollouts = converse(chat_model, chat_task, sandbox, questions, sampling)
    assert sum(bool(rollout.calls) for rollout in rollouts) > 8
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1] / sampling.temperature
        expected = (
            logits.log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(-1)
        )
        own = torch.tensor(rollout.response_mask, dtype=torch.bool)
        got = torch.tensor(rollout.logps)
        torch.testing.assert_close(got[own], expected[own], atol=1e-4, rtol=0)
        assert not got[~own].any()


def test_padded_and_ragged_rows_decode_alike(
    chat_model: Any, chat_task: Task, sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ragged = converse(chat_model, chat_task, sandbox, list(TALKS), GREEDY)
    monkeypatch.setattr("ctpo.rollout.local.engine.decoder_for", PaddedDecoder)
    padded = converse(chat_model, chat_task, sandbox, list(TALKS), GREEDY)
    assert [r.completion_ids for r in ragged] == [r.completion_ids for r in padded]


def test_a_long_output_costs_a_pass_not_a_pass_a_token(
    chat_model: Any, chat_task: Task, sandbox: Any
) -> None:
    passes = []
    hook = chat_model[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        (rollout,) = converse(chat_model, chat_task, sandbox, ["ccc"], GREEDY)
    finally:
        hook.remove()
    own = sum(rollout.response_mask)
    assert len(rollout.completion_ids) > own + 80  # a traceback
    assert len(passes) <= own + 3  # two of prefill, one for the output


@pytest.mark.parametrize("limit", [25, 26, 30, 60, 61, 62, 63])
def test_an_output_is_cut_where_the_room_ends(
    chat_model: Any, chat_task: Task, sandbox: Any, limit: int
) -> None:
    rollouts = converse(chat_model, chat_task, sandbox, list(TALKS), replace(GREEDY, max_new_tokens=limit))
    for rollout in rollouts:
        assert len(rollout.completion_ids) == len(rollout.response_mask) == len(rollout.logps) <= limit
        assert rollout.finished or len(rollout.completion_ids) == limit


def test_greedy_equals_generate_in_chat(chat_model: Any, chat_task: Task) -> None:
    model, tokenizer = chat_model
    prompts = [encode_prompt(tokenizer, chat_task, question) for question in TALKS]
    ours = TransformersEngine(model, tokenizer).generate(
        prompts, Sampling(max_new_tokens=40, temperature=0.0)
    )
    for prompt, rollout in zip(prompts, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :]
        assert rollout.completion_ids == theirs.tolist()


def test_native_calls_where_the_template_has_them(
    chat_tokenizer: Callable[..., Any], chat_task: Task
) -> None:
    tokenizer = chat_tokenizer(NATIVE)
    assert "Run a Python program" in tokenizer.decode(encode_prompt(tokenizer, chat_task, "q"))
    fenced = replace(chat_task, tool=replace(CHAT_TOOL, style="fenced"))
    assert "Run a Python program" not in tokenizer.decode(encode_prompt(tokenizer, fenced, "q"))


@pytest.mark.parametrize("name", ["aime25", "reasoning_gym:basic_arithmetic"])
def test_a_model_reads_of_one_form_of_calls(chat_tokenizer: Callable[..., Any], name: str) -> None:
    """A model that calls natively hears of that from its template, and any other from the system message."""
    pytest.importorskip("reasoning_gym") if ":" in name else None
    task = get_task(name)
    blocks = "You can run Python: write a block that starts with ```python and ends with ```, print what you need, "
    blocks += "and its output is shown to you."
    shown = {
        kind: tokenizer.decode(encode_prompt(tokenizer, each, "Q"))
        for kind, tokenizer, each in (
            ("fenced", chat_tokenizer(CHATML), task),
            ("chosen", chat_tokenizer(NATIVE), replace(task, tool=replace(CHAT_TOOL, style="fenced"))),
            ("native", chat_tokenizer(NATIVE), task),
            ("none", chat_tokenizer(CHATML), replace(task, tool=None)),
        )
    }
    assert shown["fenced"].startswith(
        f"<|im_start|>system\nSolve the problem step by step. {blocks} "
        + ("Put the final answer in" if name == "aime25" else "Give the final answer between")
    )
    assert shown["chosen"] == shown["fenced"]
    assert shown["none"] == shown["fenced"].replace(f"{blocks} ", "")
    head, _, tail = shown["native"].partition("</tools>")
    assert "Run a Python program" in head
    assert tail == shown["none"]


def test_functions_are_described_below_a_system_message_that_has_a_place(
    chat_tokenizer: Callable[..., Any],
) -> None:
    def look(query: str) -> str:
        """Look something up.

        Args:
            query: the words.
        """
        return query

    text = encode_prompt(chat_tokenizer(CHATML), replace(get_task("aime25"), tools=[look]), "Q")
    shown = chat_tokenizer(CHATML).decode(text)
    assert shown.startswith(
        "<|im_start|>system\nSolve the problem step by step. Put the final answer in \\boxed{}.\n\n"
    )
    assert shown.count("starts with ```python") == shown.count("starts with ```tool_call") == 1


def test_a_template_that_refuses_tool_messages_gets_output_blocks(
    chat_tokenizer: Callable[..., Any], chat_task: Task
) -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    tokenizer = chat_tokenizer(strict + CHATML)
    form = task_format(tokenizer, chat_task)
    assert form is not None
    calls = form.calls("```python\n1\n```", ended=False)
    assert tokenizer.decode(form.result_ids(tokenizer, calls, ["1"])) == "\n```output\n1\n```\n"
    examples = (
        {"role": "user", "content": "2*2"},
        {"role": "assistant", "content": "```python\nprint(2*2)\n```"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    )
    text = tokenizer.decode(encode_prompt(tokenizer, replace(chat_task, examples=examples), "3*3"))
    assert "print(2*2)\n```\n```output\n4\n```\nIt is 4.<|im_end|>" in text
    assert "<|im_start|>tool\n4<|im_end|>" in chat_tokenizer(CHATML).decode(
        encode_prompt(chat_tokenizer(CHATML), replace(chat_task, examples=examples), "3*3")
    )


def test_a_template_without_system_role_gets_it_with_the_question(
    chat_tokenizer: Callable[..., Any], chat_task: Task
) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    tokenizer = chat_tokenizer(strict + CHATML)
    text = tokenizer.decode(encode_prompt(tokenizer, chat_task, "3*3"))
    assert text.startswith("<|im_start|>user\nUse ```python.\n\n3*3<|im_end|>")


def test_missing_and_broken_templates_are_named(chat_tokenizer: Callable[..., Any], chat_task: Task) -> None:
    with pytest.raises(UserError, match="the model's tokenizer has no chat template"):
        encode_prompt(chat_tokenizer(None), chat_task, "q")
    with pytest.raises(UserError, match="chat template cannot render task 'talk'"):
        encode_prompt(chat_tokenizer("{{ raise_exception('never') }}"), chat_task, "q")


def test_plain_tags_stay_as_they_are(chat_tokenizer: Callable[..., Any], chat_task: Task) -> None:
    tokenizer = chat_tokenizer()
    form = task_format(tokenizer, replace(chat_task, tool=PythonTool()))
    assert form is not None
    assert (form.style, form.instructions) == ("tags", "")
    results = [form.result_ids(tokenizer, [], [text]) for text in ("5", "")]
    assert [tokenizer.decode(each) for each in results] == ["<out>5</out>", "<out></out>"]
