"""The trainers that `step.py` compares, ours and TRL's, with the same model, prompts, rewards and response lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LEVERS: dict[str, dict[str, Any]] = {
    "pack_rows": {"pack_rows": False},
    "share_prompts": {"share_prompts": False},
    "completion_head": {"completion_head": False},
    "fused_layers": {"fused_layers": False},
    "skip_zero_advantage": {"skip_zero_advantage": False},
    "max_tokens_per_micro_batch": {"max_tokens_per_micro_batch": 0},
    "keep_freed_memory": {"keep_freed_memory": False},
    "compute_dtype": {"compute_dtype": "float32"},
    "checkpointing": {"activation_checkpointing": True},
    "all": {"completion_head": False, "skip_zero_advantage": False, "compute_dtype": "float32"},
}
"""The settings of side `ctpo-KEY`, which switch KEY off. `checkpointing` restores TRL's default."""
STOCK: dict[str, dict[str, Any]] = {
    "stock": {"bf16": False},
    "stock-bf16": {},
    "stock-fast": {"bf16": False, "activation_checkpointing": False},
}
"""The settings of the sides with TRL's own trainer."""
PROMPTS, SAMPLES, LONGEST = 8, 8, 64


def make_trainer(
    side: str, lengths: str, folder: str, *, model: str = "smollm2", rows: int = 64, zero_groups: int = 0
) -> Any:
    """A trainer that will take one step.

    Args:
        side: a key of STOCK, "ctpo", or "ctpo-" and a key of LEVERS.
        lengths: "equal" or "ragged", of the responses.
        folder: where it may write.
        model: as `ctpo train` names it.
        rows: per_device_train_batch_size.
        zero_groups: the number of prompts whose responses all get the same reward.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from ctpo import CTPOConfig, CTPOTrainer
    from ctpo.evaluation.model import load_model

    policy, tokenizer = load_model(model, dtype="float32")
    planned = response_lengths(lengths)
    keys: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": PROMPTS * SAMPLES // rows,
        "num_generations": SAMPLES,
        "max_completion_length": LONGEST,
        "max_steps": 1,
        "learning_rate": 1e-6,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    keys["generation_kwargs"] = {"suppress_tokens": [tokenizer.eos_token_id]} if side in STOCK else None
    ours = not side.startswith("stock")
    settings = LEVERS.get(side.removeprefix("ctpo-"), {}) if ours else STOCK[side]
    trainer = (CTPOTrainer if ours else GRPOTrainer)(
        model=policy,
        reward_funcs=_rewards(zero_groups),
        args=(CTPOConfig if ours else GRPOConfig)(**keys, **settings),
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts()]),
        processing_class=tokenizer,
        **({"rollout_func": _rollout_func(planned)} if ours else {}),
    )
    trainer.remove_callback(PrinterCallback)
    if not ours:
        trainer.model.generate = _stopping_at(trainer.model.generate, planned)
    return trainer


def texts() -> list[str]:
    """Eight made-up prompts of 60 to 90 tokens."""
    words = "river stone lantern seven copper market window winter engine paper garden signal".split()
    draw = torch.Generator().manual_seed(0)
    picks = [torch.randint(len(words), (50 + 4 * i,), generator=draw).tolist() for i in range(PROMPTS)]
    return [" ".join(words[pick] for pick in row) + "." for row in picks]


def response_lengths(kind: str) -> torch.Tensor:
    """[rows] how many tokens each response has."""
    rows = PROMPTS * SAMPLES
    draw = torch.Generator().manual_seed(1)
    ragged = torch.randint(LONGEST // 4, LONGEST + 1, (rows,), generator=draw)
    return ragged if kind == "ragged" else torch.full((rows,), LONGEST)


def _rewards(zero_groups: int) -> Callable[..., list[float]]:
    def reward(prompts: list[str], **_: Any) -> list[float]:
        return [0.0 if i // SAMPLES < zero_groups else float(i % SAMPLES) for i in range(len(prompts))]

    return reward


def _rollout_func(planned: torch.Tensor) -> Callable[..., dict[str, Any]]:
    """Our rollouts, with each response ending exactly where it is planned to."""
    from ctpo.rollout.local import engine as module
    from ctpo.training.sampling.rollout_func import make_rollout_func

    class Planned(module.Responses):
        def end(self, ended: torch.Tensor) -> None:
            super().end(self._length_B[self._alive] >= planned[self._alive])

    module.Responses = Planned  # type: ignore[misc]
    return make_rollout_func(None)


def _stopping_at(generate: Callable[..., Any], planned: torch.Tensor) -> Callable[..., Any]:
    """TRL's generation, with the same lengths.

    A row ends one token early. Its last token is the end-of-text that pads it.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Planned(StoppingCriteria):  # type: ignore[misc]
        start: int | None = None

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            self.start = input_ids.shape[1] - 1 if self.start is None else self.start
            done: torch.Tensor = input_ids.shape[1] - self.start >= planned - (planned < LONGEST).long()
            return done

    def generate_planned(*args: Any, **kwargs: Any) -> Any:
        return generate(*args, **kwargs, stopping_criteria=StoppingCriteriaList([Planned()]))

    return generate_planned
