"""Our rollouts behind TRL's `rollout_func` seam."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from ctpo.rollout import Rollout, ToolRunner, TransformersEngine, VLLMEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.noise import row_uniforms
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Task
from ctpo.training.processes import whole_model
from ctpo.training.sampling.masking import VoidTurns, is_truncated, is_void
from ctpo.training.sampling.vllm import vllm_engine
from ctpo.training.scoring.precision import computes_in_bfloat16


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
    """Programs given to the sandbox: fewer than `tool_calls` where the run knew an answer."""
    masked_void: int = 0
    """Responses kept out of the loss because of a void turn."""
    masked_truncated: int = 0
    """Responses kept out of the loss because they ran into the length limit."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """How the judge found the responses, where it says more than right or wrong."""

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
    tools: ToolRunner | None,
    *,
    batch_size: int | None = None,
    task: Task | None = None,
    void_turns: VoidTurns = "none",
) -> Callable[[list[str], Any], dict[str, Any]]:
    """A `rollout_func` for TRL that samples, with the trainer's own model or its vLLM, and runs the tool.

    A task given makes each prompt its conversation, by the model's chat template.
    Prompts arrive once a completion; equal ones share one prefill. Returned log-probs are under the trainer's
    temperature, 0.0 on tool tokens; `env_mask` is 1 on the model's tokens, save those of responses that are kept
    out of the loss (`void_turns`, and TRL's `mask_truncated_completions`). What it cost is left in the trainer's
    `rollout_account`, where there is one.
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
        with open_engine(trainer, batch_size) as engine:
            rollouts = engine.generate(
                ids, sampling_of(trainer), tools=tools, uniforms=_uniforms(trainer, len(ids))
            )
        account = _account(rollouts, time.perf_counter() - started, tools)
        trainer.rollout_account = account
        return {
            "prompt_ids": [rollout.prompt_ids for rollout in rollouts],
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "logprobs": [rollout.logps for rollout in rollouts],
            "env_mask": [
                [0] * len(rollout.response_mask) if masked else rollout.response_mask
                for rollout, masked in zip(rollouts, _masked(rollouts, trainer, account), strict=True)
            ],
        }

    def _masked(rollouts: list[Rollout], trainer: Any, account: RolloutAccount) -> list[bool]:
        truncated = [trainer.mask_truncated_completions and is_truncated(rollout) for rollout in rollouts]
        void = [is_void(rollout, trainer.processing_class, task, void_turns) for rollout in rollouts]
        account.masked_truncated, account.masked_void = sum(truncated), sum(void)
        return [one or other for one, other in zip(truncated, void, strict=True)]

    return rollout_func


def _uniforms(trainer: Any, rows: int) -> Tensor | None:
    """Each response's random numbers, by its place in the rollout batch of all processes.

    None in evaluation, and with vLLM, which has random numbers of its own: seeds of ours would cost it a request
    a response.
    """
    if not trainer.model.training or trainer.use_vllm:
        return None
    first = trainer.accelerator.process_index * rows
    steps = trainer.args.steps_per_generation * trainer.num_iterations
    return row_uniforms(
        range(first, first + rows),
        trainer.max_completion_length,
        seed=trainer.args.seed,
        stream=trainer._step // steps,
    )


@contextmanager
def open_engine(trainer: Any, batch_size: int | None) -> Iterator[TransformersEngine | VLLMEngine]:
    """What samples from the model in training: its vLLM where it has one, else the model itself."""
    if trainer.use_vllm:
        yield vllm_engine(trainer)
        return
    with whole_model(trainer.model_wrapped, trainer.accelerator) as model:
        yield TransformersEngine(
            model,
            trainer.processing_class,
            eos_token_ids=trainer.eos_token_ids,
            batch_size=batch_size,
            in_bfloat16=computes_in_bfloat16(trainer.args, trainer.model),
        )


def rollout_figures(account: RolloutAccount) -> dict[str, Any]:
    """What a record says about masked responses and the judge: only what there was."""
    figures: dict[str, Any] = {}
    if account.masked_void or account.masked_truncated:
        share = max(account.responses, 1)
        figures["masked_void"] = account.masked_void / share
        figures["masked_truncated"] = account.masked_truncated / share
        # TRL counts a masked response as one of no tokens.
        figures["response_tokens"] = account.model_tokens / share
    for verdict, count in sorted(account.verdicts.items()):
        figures[f"judged_{verdict.replace(' ', '_')}"] = count
    return figures


def tool_figures(account: RolloutAccount) -> dict[str, float]:
    """Tool use as TRL logs it for tools of its own; nothing where no tool is."""
    if not account.tool_calls:
        return {}
    return {
        "tools/call_frequency": account.tool_calls / max(account.responses, 1),
        "tools/failure_frequency": account.tool_failures / account.tool_calls,
    }


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
        model_tokens=sum(sum(rollout.response_mask) for rollout in rollouts),
        seconds=seconds,
    )
    if tools is not None:
        account.tool_seconds, account.tool_calls = tools.seconds, tools.calls
        account.tool_failures, account.tool_executed = tools.failures, tools.executed
    return account
