"""Which groups of responses a rollout batch trains on: dynamic sampling, oversampling and a curriculum.

A group is all responses to one prompt. If their rewards are all equal, it has no spread, and advantages within the
group are 0. Where turns have advantages of their own, the rewards of every turn must be equal for that. Dynamic
sampling replaces such groups by groups of further prompts (DAPO, arXiv 2503.14476, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from torch import Tensor

from ctpo.training.config.checks import TURN_ADVANTAGES
from ctpo.training.config.groups import BUCKETS, chooses_groups
from ctpo.training.credit.turns import TurnRewards, turn_rewards_of
from ctpo.training.sampling.account import RolloutAccount, added
from ctpo.training.sampling.stream import Curriculum, ProblemStream, solve_rates
from ctpo.training.view import GroupView

_COLUMNS: Final = ("prompt_ids", "completion_ids", "tool_mask", "completions", "logprobs")
"""The first five values that TRL's `_generate` returns, one entry per response; after them come the extra fields of a
`rollout_func`, the images, and the images of tools."""
_NO_SPREAD: Final = 1e-8
"""A standard deviation up to this is none, as where TRL counts `frac_reward_zero_std`."""


class Sampled(Exception):
    """No error: it leaves TRL's method once the responses of a round have their rewards."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """All responses to one prompt."""

    row: int
    """Of the training data."""
    responses: list[dict[str, Any]]
    """What sampling gave, one dictionary per response."""
    rewards: Tensor
    """[G, K] of the reward functions; NaN where one gave no reward."""
    values: Tensor
    """[G] the rewards that decide about the group; NaN for a response without."""
    turns: Tensor | None = None
    """[G, K] the rewards of turns, where each has an advantage of its own; NaN beyond a response's last turn."""

    @property
    def mean(self) -> float:
        """The mean over the responses that have a reward; NaN if none has."""
        return float(self.values.nanmean())

    @property
    def spread(self) -> float:
        """The standard deviation over the responses that have a reward; 0 if that is none.

        Where equal rewards are sums of different turns, it is that of the turn that differs most.
        """
        whole = _deviation(self.values)
        if whole > _NO_SPREAD or self.turns is None:
            return whole if whole > _NO_SPREAD else 0.0
        known = self.turns[~self.values.isnan()]
        most = max((_deviation(turn) for turn in known.unbind(1)), default=0.0)
        return most if most > _NO_SPREAD else 0.0


class GroupSampler:
    """Samples the groups of each rollout batch in rounds, and hands those that it keeps to TRL as if sampled at once.

    A round runs TRL's own method up to the rewards and leaves it there. When the groups are chosen, the method runs
    again on them, with the responses and rewards that are already known. So log-probs, advantages and logs are of the
    groups that are trained on. Every process makes the same calls.

    Args:
        trainer: whose rollout batches they are. Its settings are those of `ctpo.training.config.groups`.

    Raises:
        ValueError: if the training data is a stream, the prompts come from TRL's environments, or no reward function
            has the name `group_metric`.
    """

    def __init__(self, trainer: GroupView) -> None:
        args, data = trainer.args, trainer.train_dataset
        what = "dynamic_sampling_rounds, oversampling and curriculum"
        if isinstance(data, IterableDataset):
            raise ValueError(
                f"{what} need training data with rows that can be drawn; this is an IterableDataset"
            )
        if trainer.environment_factories is not None:
            raise ValueError(
                f"{what} are not possible with environment_factory, which would reset twice; drop them"
            )
        if args.group_metric is not None and args.group_metric not in trainer.reward_func_names:
            known = ", ".join(trainer.reward_func_names)
            raise ValueError(f"group_metric={args.group_metric!r} is no reward function; known: {known}")
        self._trainer = trainer
        assert not isinstance(args.curriculum, str)  # TRL parses a JSON string in its own __post_init__
        self._curriculum = None if args.curriculum is None else Curriculum.of(args.curriculum)
        names = data.column_names
        rated = self._curriculum is not None and "difficulty" in names
        self._stream = ProblemStream(
            len(data),
            seed=args.seed,
            shuffle=trainer.shuffle_dataset,
            curriculum=self._curriculum,
            problems=data["id"] if "id" in names else None,
            difficulty=solve_rates(
                data["difficulty"], self._curriculum, data["id"] if "id" in names else None
            )
            if rated and self._curriculum
            else None,
        )
        self._inputs: list[dict[str, Any]] | None = None
        """Of the round that is being sampled, in this process."""
        self._found: list[Group] = []
        """Of the round that was just sampled, over all processes."""
        self._chosen: list[Group] | None = None
        """Those that TRL gets next."""
        self._account = RolloutAccount()
        self.responses = 0
        """Responses that earlier rounds of this rollout batch sampled, over all processes."""

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The rows of the round that is being sampled, one per response of this process; empty between rounds."""
        return self._inputs or []

    def fill(self, generate: Callable[[list[dict[str, Any]]], Any]) -> list[dict[str, Any]]:
        """The rows of this process's responses in the next rollout batch, whose groups have been sampled and chosen.

        Args:
            generate: TRL's method that samples and scores responses to such rows.
        """
        trainer, args = self._trainer, self._trainer.args
        needed = int(args.generation_batch_size // trainer.num_generations)
        before = {name: len(values) for name, values in trainer._metrics["train"].items()}
        self._stream.begin_batch()
        self.responses, self._account = 0, RolloutAccount()
        groups: list[Group] = []
        sizes: list[int] = []
        buckets: list[int] = []
        missing = needed
        while missing and len(sizes) <= args.dynamic_sampling_rounds:
            rows = self._stream.draw(self._whole(math.ceil(missing * args.oversampling)))
            buckets += self._stream.buckets_of(rows)
            found = self._sample(rows, generate)
            self._stream.observe(rows, [group.mean for group in found])
            groups += found
            sizes.append(len(rows))
            missing = max(0, needed - sum(group.spread > 0 for group in groups))
        self._chosen = [groups[i] for i in choose([group.spread for group in groups], needed)]
        _join(trainer._metrics["train"], before, sizes)
        trainer.rollout_account = self._account
        for name, value in self._figures(groups, sizes, buckets, needed).items():
            trainer._metrics["train"][name].append(value)
        return [response["input"] for response in self._mine()]

    def generate(
        self,
        prompts: list[Any],
        sample: Callable[[list[Any]], tuple[Any, ...]],
        score: Callable[[Any, Any, Any, Any], Tensor],
    ) -> tuple[Any, ...]:
        """What TRL's `_generate` returns for these prompts.

        Args:
            prompts: one per response of this process.
            sample: TRL's own `_generate`.
            score: TRL's `_calculate_rewards`.

        Raises:
            Sampled: if the responses belong to a round, and have been sampled and scored.
        """
        if self._inputs is None:
            return self._known()
        trainer, inputs = self._trainer, self._inputs
        trainer.rollout_account = RolloutAccount()
        values = sample(prompts)
        extra, images, tool_images = values[5:]
        columns = {name: value for name, value in zip(_COLUMNS, values, strict=False) if value is not None}
        columns |= {
            name: value for name, value in (("images", images), ("tool_images", tool_images)) if value
        }
        for name, value in extra.items():
            for i, row in enumerate(inputs):
                row[name] = value[i] if isinstance(value, list) else value
        rewards = score(inputs, prompts, columns["completions"], columns["completion_ids"]).cpu()
        columns["input"], logs = inputs, trainer._pending_extra_logs
        columns["logs"] = [{name: logs[name][i] for name in logs} for i in range(len(inputs))]
        logs.clear()
        self._account = added(self._account, trainer.rollout_account)
        responses = [{name: column[i] for name, column in columns.items()} for i in range(len(inputs))]
        if trainer.accelerator.num_processes > 1:
            responses = gather_object(responses)
        self._found = self._groups(responses, rewards)
        raise Sampled

    def rewards(self) -> Tensor | None:
        """[B, K] the rewards of the chosen groups over all processes; None while a round is being sampled."""
        if self._chosen is None:
            return None
        pending = self._trainer._pending_extra_logs
        for response in self._mine():
            for name, value in response["logs"].items():
                pending[name].append(value)
        rewards = torch.cat([group.rewards for group in self._chosen])
        self._chosen = None
        return rewards.to(self._trainer.accelerator.device)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._stream.load_state_dict(state)

    def _sample(self, rows: Sequence[int], generate: Callable[[list[dict[str, Any]]], Any]) -> list[Group]:
        """The groups of these rows."""
        trainer, size = self._trainer, self._trainer.num_generations
        index, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
        repeated = [row for row in rows for _ in range(size)]
        share = len(repeated) // processes
        mine = repeated[index * share : (index + 1) * share]
        self._rows = rows
        self._inputs = [dict(trainer.train_dataset[row]) for row in mine]
        try:
            generate(self._inputs)
        except Sampled:
            pass
        finally:
            self._inputs = None
        self.responses += len(repeated)
        return self._found

    def _groups(self, responses: list[dict[str, Any]], rewards: Tensor) -> list[Group]:
        trainer, size = self._trainer, self._trainer.num_generations
        metric = trainer.args.group_metric
        if metric is None:
            values = (rewards * trainer.reward_weights.cpu()).nansum(dim=1)
            values = values.masked_fill(rewards.isnan().all(dim=1), math.nan)
        else:
            values = rewards[:, trainer.reward_func_names.index(metric)]
        turns = None
        if trainer.args.advantages in TURN_ADVANTAGES and metric is None:
            turns = _by_turn(
                turn_rewards_of([each["input"] for each in responses], trainer.args.advantages), values
            )
        return [
            Group(
                row=row,
                responses=responses[i * size : (i + 1) * size],
                rewards=rewards[i * size : (i + 1) * size],
                values=values[i * size : (i + 1) * size].double(),
                turns=None if turns is None else turns[i * size : (i + 1) * size],
            )
            for i, row in enumerate(self._rows)
        ]

    def _known(self) -> tuple[Any, ...]:
        """The responses of the chosen groups that belong to this process, as TRL's `_generate` returns them."""
        mine = self._mine()

        def column(name: str) -> list[Any] | None:
            return [response[name] for response in mine] if name in mine[0] else None

        images = column("images")
        return *map(column, _COLUMNS), {}, images, column("tool_images") or []

    def _mine(self) -> list[dict[str, Any]]:
        """The responses of the chosen groups that belong to this process."""
        assert self._chosen is not None
        everyone = [response for group in self._chosen for response in group.responses]
        index, share = (
            self._trainer.accelerator.process_index,
            len(everyone) // self._trainer.accelerator.num_processes,
        )
        return everyone[index * share : (index + 1) * share]

    def _whole(self, groups: int) -> int:
        """At least this many groups, of which every process gets the same number of responses."""
        processes = int(self._trainer.accelerator.num_processes)
        unit = processes // math.gcd(processes, self._trainer.num_generations)
        return -(-groups // unit) * unit

    def _figures(
        self, groups: Sequence[Group], sizes: Sequence[int], buckets: Sequence[int], needed: int
    ) -> dict[str, float]:
        """What loggers and records get, under the loggers' names."""
        values = torch.cat([group.values for group in groups])
        figures = {
            "groups/rounds": float(len(sizes)),
            "groups/without_spread": sum(group.spread == 0 for group in groups) / len(groups),
            "groups/extra_responses": float((len(groups) - needed) * self._trainer.num_generations),
            "groups/reward": float(values.nanmean()),
        }
        if self._curriculum is None:
            return figures
        drawn = {f"curriculum/{name}": buckets.count(i) / len(buckets) for i, name in enumerate(BUCKETS)}
        held = {f"curriculum/problems_{name}": share for name, share in self._stream.shares().items()}
        return {**figures, **drawn, **held}


def choose(spreads: Sequence[float], needed: int) -> list[int]:
    """The groups to keep, in the order in which they were sampled.

    Groups with spread come first. If there are more than needed, those with the largest spread are kept, and of equal
    ones the earlier. If there are fewer, the earliest groups without spread fill the batch.

    Args:
        spreads: of each group, 0 for none.
        needed: how many to keep, at most as many as there are.
    """
    order = sorted(range(len(spreads)), key=lambda i: (-spreads[i], i))
    return sorted(order[:needed])


def _deviation(values: Tensor) -> float:
    """The standard deviation of the values that are known; 0 of fewer than two."""
    known = values[~values.isnan()]
    return float(known.std(correction=0)) if len(known) > 1 else 0.0


def _by_turn(pairs: Sequence[TurnRewards], totals: Tensor) -> Tensor:
    """[B, K] the rewards of the turns of each response, NaN beyond its last.

    Whatever else a response earned counts in its last turn, as in `turn_advantages`.
    """
    rows = []
    for each, total in zip(pairs, totals.tolist(), strict=True):
        rewards = [reward for _, reward in each] or [0.0]
        rewards[-1] += total - sum(rewards)
        rows.append(torch.tensor(rewards, dtype=torch.float64))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)


def _join(metrics: dict[str, list[float]], before: dict[str, int], sizes: Sequence[int]) -> None:
    """Make one value of those that TRL logged per round: the least, the largest, or the mean over the responses."""
    for name, values in metrics.items():
        rounds = values[before.get(name, 0) :]
        if len(rounds) != len(sizes) or len(sizes) < 2:
            continue
        if "/min_" in name or "/max_" in name:
            joined = min(rounds) if "/min_" in name else max(rounds)
        else:
            joined = sum(value * size for value, size in zip(rounds, sizes, strict=True)) / sum(sizes)
        values[before.get(name, 0) :] = [joined]


def group_sampler(trainer: GroupView) -> GroupSampler | None:
    """The sampler of a trainer's groups; None if its settings leave that to TRL.

    Raises:
        ValueError: as `GroupSampler` does.
    """
    return GroupSampler(trainer) if chooses_groups(trainer.args) else None
