"""Responses sampled from one policy, as arrays: tokens, masks, exact log-probs and rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.rollout import Rollout, ToolRunner, TransformersEngine
from ctpo.rollout.environments import open_environments
from ctpo.rollout.lengths import LengthLimit
from ctpo.rollout.noise import row_uniforms
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task
from ctpo.tasks.task import TEXTS, TURN_REWARDS
from ctpo.training.sampling.turns import rewards_by_turn, turn_numbers

Reward = Callable[..., list[float | None]]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """N responses, G to each problem, one group after the other.

    Attributes:
        ids: [N, L] prompt and response, padded on the right with 0.
        prompt: [N] tokens of the prompt.
        length: [N] tokens of the response, those of answers included.
        mask: [N, T] true on tokens that the policy sampled; the response alone.
        logps: [N, T] log-probs of those tokens under the policy that sampled them, nats; 0 elsewhere.
        rewards: [N, R] one column per reward function; NaN where it gave none.
        turns: [N, T] the turn of each token, from 0.
        turn_rewards: [N, K] the reward of each turn; [N, 0] where the task gives none.
    """

    ids: Tensor
    prompt: Tensor
    length: Tensor
    mask: Tensor
    logps: Tensor
    rewards: Tensor
    turns: Tensor
    turn_rewards: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sampled(self) -> Tensor:
        """[N] how many tokens the policy sampled in each response."""
        return self.mask.sum(1)

    def rows(self, chosen: Any) -> Samples:
        """The chosen responses, not padded more than they need."""
        part = {each.name: getattr(self, each.name)[chosen] for each in fields(self)}
        width = max(1, int(part["length"].max()))
        whole = int((part["prompt"] + part["length"]).max())
        part["ids"] = part["ids"][:, :whole]
        for name in ("mask", "logps", "turns"):
            part[name] = part[name][:, :width]
        return Samples(**part)

    def save(self, path: Path) -> None:
        """Write the responses to a file, whole or not at all."""
        save_arrays(path, {each.name: getattr(self, each.name).numpy() for each in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Samples:
        """The responses in a file.

        Raises:
            UserError: if it is damaged.
        """
        arrays = load_arrays(path)
        try:
            return cls(**{each.name: torch.from_numpy(arrays[each.name]) for each in fields(cls)})
        except KeyError as error:
            raise UserError(f"{path} is damaged (it lacks {error}); remove it, and run again") from None

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """All parts as one, in order."""
        joined = {}
        for each in fields(cls):
            values = [getattr(part, each.name) for part in parts]
            if values[0].ndim == 2:
                width = max(value.shape[1] for value in values)
                values = [torch.nn.functional.pad(value, (0, width - value.shape[1])) for value in values]
            joined[each.name] = torch.cat(values)
        return cls(**joined)

    @classmethod
    def of(
        cls, rollouts: Sequence[Rollout], rewards: Tensor, turn_rewards: Sequence[Any] | None = None
    ) -> Samples:
        """The responses of an engine.

        Args:
            rollouts: the responses.
            rewards: [N, R].
            turn_rewards: of each response, as `Rollout.turn_rewards`; None where the task gives none.
        """
        count = len(rollouts)
        prompt = torch.tensor([len(each.prompt_ids) for each in rollouts])
        length = torch.tensor([len(each.completion_ids) for each in rollouts])
        width = max(1, int(length.max()))
        ids = torch.zeros(count, int((prompt + length).max()), dtype=torch.long)
        mask, logps = torch.zeros(count, width, dtype=torch.bool), torch.zeros(count, width)
        for row, each in enumerate(rollouts):
            tokens = [*each.prompt_ids, *each.completion_ids]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(each.completion_ids)] = torch.tensor(each.response_mask, dtype=torch.bool)
            logps[row, : len(each.completion_ids)] = torch.tensor(each.logps, dtype=torch.float32)
        pairs = [[] for _ in rollouts] if turn_rewards is None else list(turn_rewards)
        turns = turn_numbers(pairs, width)
        by_turn = torch.zeros(count, 0, dtype=torch.float64)
        if turn_rewards is not None:
            by_turn, _ = rewards_by_turn(pairs, mask)
        return cls(
            ids=ids,
            prompt=prompt,
            length=length,
            mask=mask,
            logps=logps * mask,
            rewards=rewards,
            turns=turns,
            turn_rewards=by_turn,
        )


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def load_arrays(path: Path) -> dict[str, Any]:
    """The arrays in a file, which may come from anybody: no pickles are read.

    Raises:
        UserError: if it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, SyntaxError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and run again") from None
    except Exception as error:  # zipfile and zlib raise errors of their own
        raise UserError(f"{path} is damaged ({type(error).__name__}); remove it, and run again") from None


def sample(
    engine: TransformersEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    rewards: Sequence[Reward],
    *,
    group: int,
    seed: int,
    stream: int,
    first: int,
    tools: ToolRunner | None = None,
    products: AbstractContextManager[Any] | None = None,
) -> Samples:
    """`group` responses to each problem, with their rewards.

    Args:
        rewards: the reward functions, in TRL's calling convention.
        seed, stream, first: of the random numbers: the seed, which policy, and the place of the first problem. So a
            response does not depend on which other ones are sampled with it.

    Raises:
        UserError: if a problem leaves no room in the model's context.
    """
    repeated = [problem for problem in problems for _ in range(group)]
    room = engine.room(sampling)
    with open_environments(task, tools) as environments, products or nullcontext():
        if environments is not None:
            prompts = environments.open(engine.tokenizer, repeated, room)
        elif room is not None and room < 1:
            prompts = [None]
        else:
            limit = LengthLimit(engine.tokenizer, task, 2**40 if room is None else room)
            prompts = [each for each in (limit.ids(p.prompt) for p in problems) for _ in range(group)]
        usable = [each for each in prompts if each is not None]
        if len(usable) < len(prompts):
            raise UserError(
                f"a problem of task {task.name!r} leaves no room in the model's context beside "
                f"max_completion_length={sampling.max_new_tokens}; lower that, or give shorter problems"
            )
        places = range(first * group, (first + len(problems)) * group)
        rollouts = engine.generate(
            usable,
            sampling,
            partner=tools if environments is None else environments,
            uniforms=row_uniforms(places, sampling.max_new_tokens, seed=seed, stream=stream),
        )
        if environments is not None:
            environments.finish(rollouts)
    texts = engine.tokenizer.batch_decode(
        [each.completion_ids for each in rollouts], skip_special_tokens=True
    )
    turns = [each.turn_rewards for each in rollouts] if environments is not None else None
    columns: dict[str, Any] = {
        "prompts": [each.prompt for each in repeated],
        "completions": texts,
        "completion_ids": [each.completion_ids for each in rollouts],
        "answer": [each.answer for each in repeated],
        "id": [each.id for each in repeated],
        TEXTS: texts,
        **({} if turns is None else {TURN_REWARDS: turns}),
    }
    given = [
        [float("nan") if value is None else float(value) for value in function(**columns)]
        for function in rewards
    ]
    return Samples.of(rollouts, torch.tensor(given, dtype=torch.float64).T.contiguous(), turns)
