"""Small but real training runs: with the embedded model, the real sandbox and TRL itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "generation_batch_size": 32,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 80,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "max_steps": 8,
    "logging_steps": 4,
    "save_strategy": "no",
    "use_cpu": True,
    "seed": 3,
    "report_to": "none",
    "disable_tqdm": True,
}
"""Two rollout batches of 8 prompts with 4 responses each, and 4 updates per rollout batch."""


@pytest.fixture(scope="session")
def fit(arithmetic: Any, sandbox: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A function that trains the embedded model with a trainer class and settings, and returns the trainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback

    from ctpo.rollout import ToolRunner
    from ctpo.tasks import reward_function
    from ctpo.tasks.arithmetic import model_path
    from ctpo.training.sampling.rollout_func import make_rollout_func

    torch.set_num_threads(1)
    problems = Dataset.from_list([vars(problem) for problem in arithmetic.problems("train", 64, 0)])

    def fit(trainer_class: type, config_class: type, **settings: Any) -> Any:
        keys = {**SMALL, **settings}
        model, resume = keys.pop("model", str(model_path())), keys.pop("resume", None)
        others = {name: keys.pop(name) for name in ("peft_config", "callbacks") if name in keys}
        printer = keys.pop("keep_printer", False)
        trainer = trainer_class(
            model=model,
            reward_funcs=reward_function(arithmetic),
            args=config_class(str(tmp_path_factory.mktemp("fit")), **keys),
            train_dataset=problems,
            processing_class=AutoTokenizer.from_pretrained(model_path(), padding_side="left"),
            rollout_func=make_rollout_func(ToolRunner(arithmetic.tool, sandbox)),
            **others,
        )
        if not printer:
            trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return fit


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., dict[str, Any]]:
    """A function that returns the keys of a run of two small rollout batches."""

    def keys(output: Path, **changes: Any) -> dict[str, Any]:
        ours = {"eval_problems": 16, "eval_every": 1, "transcripts": 4, "train_problems": 64, "threads": 1}
        ours |= {
            "eval_stderr": 0.2
        }  # less than its first block, so all are used unless a test has smaller blocks
        left_out = ("max_steps", "logging_steps", "disable_tqdm", "save_strategy")
        trainers = {name: value for name, value in SMALL.items() if name not in left_out}
        return {
            **trainers,
            **ours,
            "rollout_batches": 2,
            "save_steps": 1000,
            "output_dir": str(output),
            **changes,
        }

    return keys
