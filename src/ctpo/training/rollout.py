"""Our rollouts behind TRL's `rollout_func` seam."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from ctpo.rollout import Rollout, ToolRunner, TransformersEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.engine import Sampling
from ctpo.rollout.noise import row_uniforms
from ctpo.tasks import Task
from ctpo.training.processes import whole_model


@dataclass(kw_only=True)
class RolloutAccount:
    """What the last rollout batch of this process was and what it cost."""

    responses: int = 0
    model_tokens: int = 0
    """Tokens the model sampled."""
    seconds: float = 0.0
    """Wall-clock of the whole batch, tools included."""
    tool_seconds: float = 0.0
    tool_calls: int = 0
    tool_failures: int = 0
    tool_executed: int = 0
    """Programs really run: fewer than `tool_calls` where an answer was known."""

    def over_processes(self, accelerator: Any) -> RolloutAccount:
        """That of the whole rollout batch: counts added up, seconds those of the slowest process."""
        if accelerator.num_processes == 1:
            return self
        everyone = [vars(account) for account in gather_object([self])]
        return RolloutAccount(
            **{name: _together(name, [each[name] for each in everyone]) for name in vars(self)}
        )


def _together(name: str, values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        keys = sorted({key for value in values for key in value})
        return {key: sum(value.get(key, 0) for value in values) for key in keys}
    return max(values) if "seconds" in name else sum(values)


def make_rollout_func(
    tools: ToolRunner | None, *, batch_size: int | None = None, task: Task | None = None
) -> Callable[[list[str], Any], dict[str, Any]]:
    """A `rollout_func` for TRL that samples with the trainer's own model and runs the tool.

    A task given makes each prompt its conversation, by the model's chat template.
    Prompts arrive once a completion; equal ones share one prefill. Returned log-probs are under the trainer's
    temperature, 0.0 on tool tokens; `env_mask` is 1 on the model's tokens. What it cost is left in the
    trainer's `rollout_account`, where there is one.
    """

    def rollout_func(prompts: list[str], trainer: Any) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        if task is None:
            ids = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
        else:
            ids = [encode_prompt(tokenizer, task, prompt) for prompt in prompts]
        started = time.perf_counter()
        if tools is not None:
            tools.reset_account()
        with whole_model(trainer) as model:
            engine = TransformersEngine(
                model, tokenizer, eos_token_ids=trainer.eos_token_ids, batch_size=batch_size
            )
            rollouts = engine.generate(
                ids, sampling_of(trainer), tools=tools, uniforms=_uniforms(trainer, len(ids))
            )
        trainer.rollout_account = _account(rollouts, time.perf_counter() - started, tools)
        return {
            "prompt_ids": [rollout.prompt_ids for rollout in rollouts],
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "logprobs": [rollout.logps for rollout in rollouts],
            "env_mask": [rollout.model_mask for rollout in rollouts],
        }

    return rollout_func


def _uniforms(trainer: Any, rows: int) -> Tensor | None:
    """Each response's random numbers, by its place in the rollout batch of all processes; None in evaluation."""
    if not trainer.model.training:
        return None
    first = trainer.accelerator.process_index * rows
    steps = trainer.args.steps_per_generation * trainer.num_iterations
    return row_uniforms(
        range(first, first + rows),
        trainer.max_completion_length,
        seed=trainer.args.seed,
        stream=trainer._step // steps,
    )


def sampling_of(trainer: Any) -> Sampling:
    """How the trainer's settings say to sample."""
    return Sampling(
        max_new_tokens=trainer.max_completion_length,
        temperature=trainer.temperature,
        top_k=trainer.top_k or 0,
        top_p=trainer.top_p,
    )


def _account(rollouts: list[Rollout], seconds: float, tools: ToolRunner | None) -> RolloutAccount:
    account = RolloutAccount(
        responses=len(rollouts),
        model_tokens=sum(sum(rollout.model_mask) for rollout in rollouts),
        seconds=seconds,
    )
    if tools is not None:
        account.tool_seconds, account.tool_calls = tools.seconds, tools.calls
        account.tool_failures, account.tool_executed = tools.failures, tools.executed
    return account
