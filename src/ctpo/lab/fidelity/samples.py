"""Responses sampled from one policy, as arrays: tokens, masks, exact log-probs and rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout import Rollout, ToolRunner, TransformersEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.environments import open_environments
from ctpo.rollout.lengths import LengthLimit
from ctpo.rollout.noise import row_uniforms
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task
from ctpo.tasks.task import TEXTS, TURN_REWARDS
from ctpo.training.credit.segments import has_segments, segment_rewards
from ctpo.training.credit.turns import rewards_by_turn, turn_numbers

Reward = Callable[..., list[float | None]]
_AT_ONCE: Final = 64
"""How many environments are reset together to see how long their first messages are."""


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

    @property
    def in_loss(self) -> Tensor:
        """[N] whether training would leave the response in the loss."""
        return self.mask.any(1)

    def rows(self, chosen: Any) -> Samples:
        """The chosen responses, not padded more than they need."""
        part = {each.name: getattr(self, each.name)[chosen] for each in fields(self)}
        width = max(1, int(part["length"].max()))
        whole = int((part["prompt"] + part["length"]).max())
        part["ids"] = part["ids"][:, :whole]
        for name in ("mask", "logps", "turns"):
            part[name] = part[name][:, :width]
        return Samples(**part)

    @property
    def arrays(self) -> dict[str, Any]:
        """The responses as arrays by name."""
        return {each.name: getattr(self, each.name).numpy() for each in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any]) -> Samples:
        """The responses that `arrays` returned."""
        return cls(**{each.name: torch.from_numpy(arrays[each.name]) for each in fields(cls)})

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


def fitting(
    task: Task,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    room: int | None,
    count: int,
    tools: ToolRunner | None = None,
) -> tuple[list[Problem], int]:
    """The first `count` problems that leave room in the model's context, and how many before them do not.

    Args:
        room: how many tokens a prompt may have; None for no limit.
        tools: for environments that call them.
    """
    chosen: list[Problem] = []
    left_out = 0
    with open_environments(task, tools) as environments:
        limit = None if room is None or room < 1 else LengthLimit(tokenizer, task, room)
        for first in range(0, len(problems), _AT_ONCE):
            some = problems[first : first + _AT_ONCE]
            if environments is not None and room is not None:
                fits = [each is not None for each in environments.open(tokenizer, some, room)]
            else:
                fits = [room is None or (limit is not None and limit.allows(each.prompt)) for each in some]
            for problem, fit in zip(some, fits, strict=True):
                if len(chosen) == count:
                    return chosen, left_out
                chosen += [problem] * fit
                left_out += not fit
    return chosen, left_out


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
    weights: Sequence[float] | None = None,
    masked: Callable[[Rollout], bool] = lambda rollout: False,
) -> Samples:
    """`group` responses to each problem, with their rewards.

    Args:
        rewards: the reward functions, in TRL's calling convention.
        seed, stream, first: of the random numbers: the seed, which policy, and the place of the first problem. So a
            response does not depend on which other ones are sampled with it.
        weights: of the reward functions; None if all count alike.
        masked: which responses are left out of the loss. Their rewards count.

    Raises:
        UserError: if an environment begins with more than there is room for in the model's context (see `fitting`).
    """
    repeated = [problem for problem in problems for _ in range(group)]
    room = engine.room(sampling)
    with open_environments(task, tools) as environments:
        if environments is not None:
            prompts = environments.open(engine.tokenizer, repeated, room)
        else:
            encoded = [encode_prompt(engine.tokenizer, task, each.prompt) for each in problems]
            prompts = [each for each in encoded for _ in range(group)]
        usable = [each for each in prompts if each is not None]
        if len(usable) < len(prompts):
            raise UserError(
                f"an environment of task {task.name!r} was reset twice, and the second time its first messages left "
                f"no room beside max_completion_length={sampling.max_new_tokens}; lower that"
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
    turns: list[Any] | None = [each.turn_rewards for each in rollouts] if environments is not None else None
    columns: dict[str, Any] = {
        "prompts": [each.prompt for each in repeated],
        "completions": texts,
        "completion_ids": [each.completion_ids for each in rollouts],
        "answer": [each.answer for each in repeated],
        "id": [each.id for each in repeated],
        TEXTS: texts,
        **({} if turns is None else {TURN_REWARDS: turns}),
    }
    given = [function(**columns) for function in rewards]
    if has_segments(given):
        turns = segment_rewards(
            given, weights or [1.0] * len(given), columns["completion_ids"], engine.tokenizer
        )
    values = [[float("nan") if value is None else float(value) for value in each] for each in given]
    return Samples.of(
        [
            replace(each, response_mask=[0] * len(each.response_mask)) if masked(each) else each
            for each in rollouts
        ],
        torch.tensor(values, dtype=torch.float64).T.contiguous(),
        turns,
    )
