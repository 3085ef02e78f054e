"""The warm-up: the demonstrator it imitates, the tokens it leaves out, and that equal settings give equal models."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from arithmetic_model.demonstrations import Demonstrator
from arithmetic_model.warmup import IGNORED, WarmupConfig, collate, make_model, train

from ctpo.tasks import get_task
from ctpo.tasks.arithmetic.tokenizer import VOCABULARY, build_tokenizer

TASK = get_task("arithmetic")
PROMPT = "3+67+77-29+5-99="
TOOL_ONLY = "".join(
    f"<py>print({call})</py><out>{out}</out>"
    for call, out in [("3+67", 70), ("70+77", 147), ("147-29", 118), ("118+5", 123), ("123-99", 24)]
)


@pytest.mark.parametrize(
    ("shares", "completion"),
    [((1.0,), TOOL_ONLY + "=24"), ((0.0,), "3+67=70;70+77=147;147-29=118;118+5=123;123-99=24;=24")],
)
def test_a_careful_demonstrator_is_right(shares: tuple[float, ...], completion: str) -> None:
    assert Demonstrator(tool_shares=shares, garble=0.0).solve(PROMPT, random.Random(0)) == completion
    assert TASK.check(completion, "24")


def test_the_tool_is_used_step_by_step_as_often_as_asked() -> None:
    texts = [
        Demonstrator(garble=0.0, tool_shares=(1.0, 0.5, 0.0)).solve(PROMPT, random.Random(s))
        for s in range(2000)
    ]
    share = [
        sum(call in text for text in texts) / 2000 for call in ("(3+67)", "(70+77)", "(147-29)", "(118+5)")
    ]
    assert share == [1.0, pytest.approx(0.5, abs=0.04), 0.0, 0.0]


def test_slips_happen_and_the_tool_answers_what_it_was_asked() -> None:
    draw = random.Random(0)
    sloppy = Demonstrator(garble=0.3, tool_shares=(0.8,))
    texts = [sloppy.solve(p.prompt, draw) for p in TASK.problems("train", 200, 0)]
    calls = [
        call for text in texts for call in re.findall(r"print\(([^)]*)\)</py><out>(-?[0-9]+)</out>", text)
    ]
    assert len(calls) == sum(text.count("<py>") for text in texts) > 500
    assert all(str(eval(program)) == result for program, result in calls)
    right = sum(TASK.check(t, p.answer) for t, p in zip(texts, TASK.problems("train", 200, 0), strict=True))
    assert right < 20


def test_only_the_models_own_words_are_trained_on() -> None:
    tokenizer = build_tokenizer()
    pairs = [("70-95+7=", "<py>print(70-95)</py><out>-25</out>-25+7=-18;=-18"), ("1+2=", "=3")]
    labels = collate(pairs, tokenizer)["labels"]
    written = ["".join(VOCABULARY[i] for i in row if i != IGNORED) for row in labels.tolist()]
    assert written == ["<py>print(70-95)</py>-25+7=-18;=-18<eos>", "=3<eos>"]


def test_the_warm_up_repeats_itself_bit_for_bit(tmp_path: Path) -> None:
    config = WarmupConfig(steps=3, batch=8)
    for name in ("a", "b"):
        torch.rand(7)  # the global random state must not matter
        make_model(tmp_path / name, config)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b
    other, _ = train(replace(config, seed=1))
    first, _ = train(config)
    assert any(not torch.equal(x, y) for x, y in zip(first.parameters(), other.parameters(), strict=True))


def test_the_warm_up_leaves_torch_as_it_found_it() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train(WarmupConfig(steps=1, batch=2))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="steps=0"):
        WarmupConfig(steps=0)
    with pytest.raises(ValueError, match=r"garble=1\.5"):
        Demonstrator(garble=1.5)
    with pytest.raises(ValueError, match=r"tool_shares=\(\)"):
        Demonstrator(tool_shares=())
