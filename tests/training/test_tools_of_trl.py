"""Functions given to the trainer without a rollout function of ours: TRL's own loop calls them."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from rollout.conftest import make_model, make_tokenizer

from ctpo.training import CTPOConfig, CTPOTrainer

MADE: list[str] = []


def double(number: int) -> int:
    """Double a number.

    Args:
        number: the number
    """
    MADE.append(f"double {number}")
    return 2 * number


async def look_up(word: str) -> str:
    """Look up a word.

    Args:
        word: the word
    """
    MADE.append(f"look_up {word}")
    raise LookupError(word)


class Scripted(CTPOTrainer):
    """A trainer whose model says what a script says; everything else is as it is."""

    turns = (
        "\n".join(
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
            for name, arguments in (("double", {"number": 21}), ("look_up", {"word": "tea"}))
        ),
        "It is 42.",
    )

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        text = self.turns[any("tool_response" in self._tokenizer.decode(ids[-200:]) for ids in prompt_ids)]
        return [self._tokenizer.encode(text + "<|im_end|>") for _ in prompt_ids], None


def test_plain_functions_are_called_by_trls_loop_and_their_results_are_not_trained_on(tmp_path: Path) -> None:
    from datasets import Dataset

    tokenizer = make_tokenizer(files("trl").joinpath("chat_templates", "qwen3.jinja").read_text())
    seen: list[Any] = []

    def reward(completions: list[Any], **_: Any) -> list[float]:
        seen.extend(completions)
        return [float(i % 2) for i in range(len(completions))]

    settings = {
        "max_completion_length": 500,
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "max_steps": 1,
    }
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    trainer = Scripted(
        make_model(tokenizer, hidden_size=16, intermediate_size=32, max_position_embeddings=2048),
        reward,
        CTPOConfig(str(tmp_path / "out"), records=False, **settings, **quiet),
        Dataset.from_list([{"prompt": [{"role": "user", "content": "21 * 2?"}]}] * 2),
        processing_class=tokenizer,
        tools=[double, look_up],
    )
    masks: list[Any] = []
    loss = trainer._compute_loss

    def watched(model: Any, inputs: Any, *args: Any) -> Any:
        masks.append((inputs["completion_ids"], inputs["tool_mask"]))
        return loss(model, inputs, *args)

    trainer._compute_loss = watched  # type: ignore[method-assign]
    trainer.train()
    assert sorted(MADE) == sorted(["double 21", "look_up tea"] * 2)
    roles = [[message["role"] for message in completion] for completion in seen]
    assert roles == [["assistant", "tool", "tool", "assistant"]] * 2
    assert [seen[0][i]["content"] for i in (1, 2)] == ["42", str({"error": "tea"})]
    ids, mask = masks[0]
    inserted = tokenizer.decode(ids[0][~mask[0].bool() & (ids[0] != tokenizer.pad_token_id)])
    assert "<tool_response>\n42\n</tool_response>" in inserted
    assert "It is 42." not in inserted
    logged = trainer.state.log_history[0]
    assert (logged["tools/call_frequency"], logged["tools/failure_frequency"]) == (2.0, 0.5)
