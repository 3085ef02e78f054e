"""`Credit`: the advantages of a rollout batch, by the estimator that the setting `advantages` names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype
from ctpo.tasks.task import TURN_REWARDS
from ctpo.training.config.checks import TURN_ADVANTAGES
from ctpo.training.credit.estimators import estimated, total_rewards
from ctpo.training.credit.segments import segment_rewards
from ctpo.training.credit.turns import (
    rewards_by_token,
    rewards_by_turn,
    spread,
    turn_advantages,
    turn_numbers,
    turn_rewards_of,
)
from ctpo.training.critic.learner import Critic, Responses
from ctpo.training.diagnostics.pull import null_sizes
from ctpo.training.sampling.checked import CheckedRewards
from ctpo.training.scoring.microbatch import MicroBatch
from ctpo.training.scoring.parts import PartScorer
from ctpo.training.view import CreditView

_NO_BEHAVIOUR: Final = (
    "critic.correction='v-trace' needs the rollout engine's log-probs, which TRL's own generation does not report; use "
    "anchor='rollout', or correction='none'"
)
_TOKEN_REWARDS: Final = "token_rewards"
"""The entry of a rollout batch that holds rewards [B, T] until the critic has read them."""


class Credit:
    """Turns the rewards of a rollout batch into advantages of responses, turns or tokens.

    Every process has one and makes the same calls: `starting`, `take_rewards`, `give`, and `learn` where there is a
    critic.

    Args:
        trainer: whose rollout batches they are.
        scorer: runs the critic's trunk.
        score: log-probs [B, T] of a rollout batch under the model in training.
    """

    def __init__(
        self, trainer: CreditView, scorer: PartScorer, score: Callable[[dict[str, Any]], Tensor]
    ) -> None:
        self._trainer, self._scorer, self._score = trainer, scorer, score
        self.rewards = torch.zeros(0, 0)
        """[B, K] of all processes in the last rollout batch, by reward function; NaN where one gave None."""
        self.critic = Critic(trainer, scorer) if trainer.args.advantages == "gae" else None
        """Gives tokens their values, if `advantages` is gae."""

    @property
    def by_turn(self) -> bool:
        """Whether advantages differ between the turns of a response, and need rewards of turns."""
        return self._trainer.args.advantages in TURN_ADVANTAGES

    def starting(self) -> None:
        """Prepare for a rollout batch: the next pass over it may keep what a critic reads."""
        if self.critic is not None and self.critic.reads_states and self._trainer.args.anchor == "old":
            self._scorer.keep_states()

    def take_rewards(
        self, rewards: Tensor, checked: CheckedRewards, inputs: Any, completion_ids: Any
    ) -> None:
        """Take what the reward functions gave. Rewards of parts of a response become rewards of turns in its row.

        Args:
            rewards: [B, K] of all processes.
            checked: what the functions gave in this process, with the parts.
            inputs: the rows of this process, which get `TURN_REWARDS`.
            completion_ids: the tokens of each response of this process.
        """
        self.rewards = rewards
        if not (self.by_turn or self.critic is not None):
            return
        given = [each or [None] * len(completion_ids) for each in checked.given]
        earned = any(value for values in given for value in values)
        if checked.in_parts or (self.by_turn and not (earned or TURN_REWARDS in inputs[0])):
            weights, tokenizer = self._trainer.reward_weights.tolist(), self._trainer.processing_class
            found = segment_rewards(given, weights, completion_ids, tokenizer)
            for row, turns in zip(inputs, found, strict=True):
                row[TURN_REWARDS] = turns

    def give(self, inputs: Any, rollouts: dict[str, Any]) -> None:
        """Put the advantages into a rollout batch, where they are not TRL's.

        In training, those of a critic come with `learn`, for which the rewards of tokens are put in.

        Args:
            inputs: the rows of this process.
            rollouts: TRL's dictionary of this process.
        """
        if self.by_turn:
            rollouts["advantages"] = self._of_turns(inputs, rollouts)
        elif self.critic is not None:
            rollouts[_TOKEN_REWARDS] = self._token_rewards(inputs, rollouts)
            if not self._trainer.model.training:
                advantages = self.critic.value(self._for_critic(self.critic, rollouts))
                rollouts["advantages"] = advantages.to(rollouts["advantages"])
        elif self._trainer.args.advantages != "trl":
            rollouts["advantages"] = self._of_responses(rollouts)

    def learn(self, rollouts: dict[str, Any]) -> dict[str, Tensor]:
        """Put in the advantages of the critic, which has then learned from the rollout batch; its figures.

        To be called with the weights that learn. Without a critic nothing happens.
        """
        if self.critic is None:
            return {}
        advantages, figures = self.critic.learn(self._for_critic(self.critic, rollouts))
        rollouts["advantages"] = advantages.to(rollouts["advantages"])
        return figures

    def _group(self) -> int:
        """Responses per prompt."""
        trainer = self._trainer
        return trainer.num_generations if trainer.model.training else trainer.num_generations_eval

    def _own(self, everyone: Tensor, rows: int) -> Tensor:
        """The part of this process, which has this many responses."""
        first = self._trainer.accelerator.process_index * rows
        return everyone[first : first + rows]

    def _totals(self) -> Tensor:
        return total_rewards(self.rewards, self._trainer.reward_weights)

    def _of_responses(self, rollouts: dict[str, Any]) -> Tensor:
        """[B] of this process's responses. TRL's log of them is replaced."""
        trainer = self._trainer
        lengths = trainer.accelerator.gather(MicroBatch.of(rollouts).response_mask.sum(dim=1))
        weights = trainer.reward_weights.to(self.rewards.device)
        everyone = estimated(trainer.args.advantages, self.rewards, weights, self._group(), lengths)
        logged = trainer._logs["advantages"]
        for _ in range(min(len(logged), len(everyone))):
            logged.pop()
        logged.extend(everyone.tolist())
        return self._own(everyone, len(rollouts["advantages"]))

    def _of_turns(self, inputs: Any, rollouts: dict[str, Any]) -> Tensor:
        """[B, T] of this process's tokens, one per turn."""
        args, accelerator = self._trainer.args, self._trainer.accelerator
        mask, pairs = MicroBatch.of(rollouts).response_mask, turn_rewards_of(inputs, args.advantages)
        rewards, turns = (each.to(mask.device) for each in rewards_by_turn(pairs, mask))
        everyone = turn_advantages(
            accelerator.gather(accelerator.pad_across_processes(rewards, dim=1)).cpu(),
            accelerator.gather(turns).cpu(),
            self._totals(),
            self._group(),
            name=args.advantages,
            scale=args.scale_rewards,
        )
        numbers, like = turn_numbers(pairs, mask.shape[1]), rollouts["advantages"]
        # A group can exchange the rewards of a turn, so each turn has a size of its own.
        sizes = null_sizes(everyone, self._group()) if args.diagnostics else None
        if sizes is not None:
            rollouts["null_sizes"] = spread(self._own(sizes, len(mask)), numbers, mask).to(like)
        return spread(self._own(everyone, len(mask)), numbers, mask).to(like)

    def _token_rewards(self, inputs: Any, rollouts: dict[str, Any]) -> Tensor:
        """[B, T] of this process's tokens; NaN throughout a response that no reward function has judged."""
        mask = MicroBatch.of(rollouts).response_mask
        pairs = [row[TURN_REWARDS] for row in inputs] if TURN_REWARDS in inputs[0] else None
        rewards = rewards_by_token(pairs, self._own(self._totals(), len(mask)), mask)
        return rewards.to(mask.device, prefix_dtype(mask.device))

    def _for_critic(self, critic: Critic, rollouts: dict[str, Any]) -> Responses:
        """What a critic reads: only tokens of responses that a reward function has judged count.

        The log-probs are those of the engine. Where it reports none, the model in training has sampled.
        """
        rewards, batch = rollouts.pop(_TOKEN_REWARDS), MicroBatch.of(rollouts)
        sampled = batch.rollout_logps
        present = batch.old_logps
        if present is None and (sampled is None or critic.corrects):
            present = self._score(rollouts)
        if critic.corrects and sampled is None:
            raise ValueError(_NO_BEHAVIOUR)
        ratios = None
        if critic.corrects:
            assert present is not None and sampled is not None  # noqa: PT018
            ratios = torch.where(batch.response_mask, present - sampled, 0.0)
        logps = present if sampled is None else sampled
        assert logps is not None
        return Responses(
            rows=replace(batch.rows, wanted=batch.response_mask & ~rewards.isnan()),
            rewards=rewards,
            logps=logps,
            log_ratios=ratios,
            states=None if batch.old_logps is None else self._scorer.kept_states(batch.completion_mask),
        )
