"""Which responses are masked, and that a masked response changes neither the loss nor its denominators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctpo.errors import UserError
from ctpo.rollout import Rollout, ToolCall
from ctpo.tasks import get_task
from ctpo.training.run.train import train
from ctpo.training.sampling.masking import check_void_turns, is_void

CALL = ToolCall(program="print(5)", status="ok", output="<out>5</out>")


@pytest.fixture
def rollout(embedded: Any) -> Callable[..., Rollout]:
    def make(*parts: str, calls: int = 0) -> Rollout:
        """The parts come from the model and from the tool in turn."""
        ids = [embedded[1].encode(part, add_special_tokens=False) for part in parts]
        return Rollout(
            prompt_ids=[3],
            completion_ids=[token for part in ids for token in part],
            response_mask=[1 - i % 2 for i, part in enumerate(ids) for _ in part],
            calls=[CALL] * calls,
        )

    return make


@pytest.mark.parametrize(
    ("parts", "calls", "response", "turn"),
    [
        (["12+3"], 0, True, True),  # neither
        (["=15"], 0, False, False),  # an answer
        (["<py>print(5)</py>", "<out>5</out>", "=5"], 1, False, False),
        (["<py>print(5)</py>", "<out>5</out>", "12+"], 1, False, True),  # its last turn is void
        (["=5<py>print(5)</py>", "<out>5</out>", "12+"], 1, False, True),
        (["<py>print(5)</py>", "<out>5</out>"], 1, False, False),  # no room for another turn
    ],
)
def test_void(
    embedded: Any, rollout: Callable[..., Rollout], parts: list[str], calls: int, response: bool, turn: bool
) -> None:
    task, made = get_task("arithmetic"), rollout(*parts, calls=calls)
    assert is_void(made, embedded[1], task, "response") is response
    assert is_void(made, embedded[1], task, "turn") is turn
    assert not is_void(made, embedded[1], task, "none")


def test_a_task_that_cannot_tell_answers_is_refused() -> None:
    task = replace(get_task("arithmetic"), extract=None)
    check_void_turns(task, "none")
    with pytest.raises(UserError, match="mask_void_turns=turn: task 'arithmetic' cannot find"):
        check_void_turns(task, "turn")


def test_masked_responses_count_in_no_denominator(small_recipe: Any, tmp_path: Path) -> None:
    """With a limit of 76 tokens, some of the responses are truncated."""
    keys = small_recipe(
        tmp_path / "run", mask_truncated_completions=True, max_completion_length=76, rollout_batches=1
    )
    record = train(keys).run.records()[-1]
    masked = round(32 * record["masked_truncated"])
    assert 0 < masked < 32
    assert masked == round(32 * record["truncated"])
    assert record["sequences"] == 32 - masked
    assert record["response_tokens"] > 40  # of all responses, masked ones too


def test_a_batch_of_void_responses_changes_nothing(small_recipe: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from ctpo.tasks.arithmetic import model_path

    keys = small_recipe(
        tmp_path / "run", mask_void_turns="response", max_completion_length=3, rollout_batches=1
    )
    outcome = train(keys)
    record = outcome.run.records()[-1]
    assert record["masked_void"] == 1
    assert record["loss"] == 0
    before, after = (load_file(path / "model.safetensors") for path in (model_path(), outcome.run.model))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_overlong_responses_are_punished(small_recipe: Any, tmp_path: Path) -> None:
    keys = small_recipe(tmp_path / "run", overlong_buffer=20, max_completion_length=60, rollout_batches=1)
    record = train(keys).run.records()[-1]
    assert -1 < record["overlong_penalty"] < 0
