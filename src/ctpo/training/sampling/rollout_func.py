"""Rollouts for TRL: its trainer calls `rollout_func`, which samples with our engines and a partner."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ctpo.rollout import Partner, Rollout, TransformersEngine, VLLMEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.environments import EnvironmentRunner
from ctpo.rollout.noise import row_uniforms
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.turns import Accountable
from ctpo.tasks import Problem, Task
from ctpo.tasks.task import TEXTS, TURN_REWARDS
from ctpo.training.processes import whole_model
from ctpo.training.sampling.account import RolloutAccount
from ctpo.training.sampling.correction import mark_in_process
from ctpo.training.sampling.masking import VoidTurns, is_truncated, is_void
from ctpo.training.sampling.vllm import vllm_engine
from ctpo.training.scoring.precision import computes_in_bfloat16
from ctpo.training.view import SamplingView


def make_rollout_func(
    partner: Partner | None,
    *,
    batch_size: int | None = None,
    task: Task | None = None,
    void_turns: VoidTurns = "none",
    encode: Callable[[Any, Any], list[int]] | None = None,
) -> Callable[[list[Any], Any], dict[str, Any]]:
    """A `rollout_func` for TRL, which samples with the trainer's model or its vLLM, and converses with a partner.

    The environments of a task that has them answer what the partner does not answer. Then it also returns the rewards
    of the turns, as the column `turn_rewards`.

    TRL gives it one prompt per completion, a text or the messages of a conversation. Equal prompts are run through the
    model once. It returns the log-probs at the trainer's temperature, in nats, and 0.0 on the tokens of answers. Its
    `env_mask` is 1 on the tokens that the model sampled. It is 0 on all tokens of a response that is left out of the
    loss (`void_turns`, and TRL's `mask_truncated_completions`). It stores what the rollout batch cost in the trainer's
    `rollout_account`.

    Args:
        partner: answers the model's turns, for example by running the programs in them; None for none.
        batch_size: number of responses decoded at once; None for all of them.
        task: makes each prompt a conversation, with the model's chat template. None takes prompts as they are.
        void_turns: which responses without a tool call or an answer are left out of the loss.
        encode: returns the tokens of a prompt, given the tokenizer; None encodes it as the task says.
    """

    environments = None
    if task is not None and task.environment is not None:
        partner = environments = EnvironmentRunner(task, partner)

    def rollout_func(prompts: list[Any], trainer: SamplingView) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        started = time.perf_counter()
        if isinstance(partner, Accountable):
            partner.reset_account()
        if environments is not None:
            problems = [
                _problem(row, prompt) for row, prompt in zip(trainer.rollout_rows, prompts, strict=True)
            ]
            ids = [each for each in environments.open(tokenizer, problems) if each is not None]
        elif encode is not None:
            ids = [encode(tokenizer, prompt) for prompt in prompts]
        elif task is None:
            ids = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
        else:
            ids = [encode_prompt(tokenizer, task, prompt) for prompt in prompts]
        with open_engine(trainer, batch_size) as engine:
            rollouts = engine.generate(
                ids, sampling_of(trainer), partner=partner, uniforms=_uniforms(trainer, len(ids))
            )
        if environments is not None:
            environments.finish(rollouts)
        account = RolloutAccount.of(rollouts, time.perf_counter() - started, partner)
        trainer.rollout_account = account
        return {
            **(
                {} if environments is None else {TURN_REWARDS: [rollout.turn_rewards for rollout in rollouts]}
            ),
            **({} if all(isinstance(prompt, str) for prompt in prompts) else _texts(rollouts, tokenizer)),
            "prompt_ids": [rollout.prompt_ids for rollout in rollouts],
            "completion_ids": [rollout.completion_ids for rollout in rollouts],
            "logprobs": [rollout.logps for rollout in rollouts],
            "env_mask": [
                [0] * len(rollout.response_mask) if masked else rollout.response_mask
                for rollout, masked in zip(rollouts, _masked(rollouts, trainer, account), strict=True)
            ],
        }

    def _masked(rollouts: list[Rollout], trainer: SamplingView, account: RolloutAccount) -> list[bool]:
        truncated = [trainer.mask_truncated_completions and is_truncated(rollout) for rollout in rollouts]
        void = [is_void(rollout, trainer.processing_class, task, void_turns) for rollout in rollouts]
        account.masked_truncated, account.masked_void = sum(truncated), sum(void)
        return [one or other for one, other in zip(truncated, void, strict=True)]

    mark_in_process(rollout_func)
    if environments is not None:
        weakref.finalize(rollout_func, environments.close)
    return rollout_func


def _problem(row: Mapping[str, Any], prompt: Any) -> Problem:
    """The problem in a row of the dataset, for an environment."""
    return Problem(prompt=prompt, answer=str(row.get("answer", "")), id=str(row.get("id", "")))


def _texts(rollouts: list[Rollout], tokenizer: Any) -> dict[str, list[str]]:
    """The column with the whole text of each response."""
    return {
        TEXTS: tokenizer.batch_decode([each.completion_ids for each in rollouts], skip_special_tokens=True)
    }


@contextmanager
def open_engine(trainer: SamplingView, batch_size: int | None) -> Iterator[TransformersEngine | VLLMEngine]:
    """An engine that samples from the model in training: the trainer's vLLM if it uses one, else the model itself.

    Args:
        trainer: whose model samples.
        batch_size: number of responses decoded at once; None for all of them. vLLM decides itself.
    """
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


def sampling_of(trainer: SamplingView) -> Sampling:
    """The trainer's sampling settings, as an engine takes them."""
    return Sampling(
        max_new_tokens=trainer.max_completion_length,
        temperature=trainer.temperature,
        top_k=trainer.top_k or 0,
        top_p=trainer.top_p,
    )


def _uniforms(trainer: SamplingView, rows: int) -> Tensor | None:
    """The random numbers of each response, which depend on its place in the rollout batch of all processes.

    None in evaluation. None with vLLM too, which draws its own random numbers: with ours it would need one request per
    response.
    """
    if not trainer.model.training or trainer.use_vllm:
        return None
    before = getattr(trainer, "responses_before", 0)  # TRL's own trainer samples in one round
    first = before + trainer.accelerator.process_index * rows
    steps = trainer.args.steps_per_generation * trainer.num_iterations
    return row_uniforms(
        range(first, first + rows),
        trainer.max_completion_length,
        seed=trainer.args.seed,
        stream=trainer._step // steps,
    )
