"""Conversations with a model behind an endpoint that environments answer."""

from __future__ import annotations

from collections.abc import Sequence

from ctpo.errors import UserError
from ctpo.rollout.environments import EnvironmentRunner
from ctpo.rollout.remote.conversation import Conversation
from ctpo.rollout.thinking import without_thoughts
from ctpo.tasks import Task
from ctpo.tasks.environment import Step


class Playing:
    """Environments that answer conversations: those that have no tool call to answer.

    Args:
        environments: reset for the problems of these conversations, in the same order.
        task: of the environments.
    """

    def __init__(self, environments: EnvironmentRunner, task: Task) -> None:
        if environments.offers_tools:
            raise UserError(
                f"the environment of task {task.name!r} has tools of its own, which are not run for a model behind an "
                "endpoint; evaluate the model itself"
            )
        self._environments = environments
        self._places: dict[Conversation, int] = {}

    def begin(self, conversations: Sequence[Conversation]) -> None:
        """Take these conversations, one per environment."""
        self._places = {conversation: place for place, conversation in enumerate(conversations)}

    def answer(self, conversations: Sequence[Conversation]) -> None:
        """Let environments answer those conversations whose last turn the model has ended without a call."""
        ended = [
            each for each in conversations if each.done and each.reply.finished and each.reply.error is None
        ]
        for conversation, step in zip(ended, self._step(ended), strict=True):
            conversation.reply.turn_rewards.append(step.reward)
            if step.done:
                del self._places[conversation]
            else:
                conversation.go_on(step.messages)

    def finish(self) -> None:
        """Let environments score what ended before they ended it. A conversation whose request failed gets 0."""
        cut = list(self._places)
        unfinished = ["" if each.reply.finished else _reply(each) for each in cut]
        rewards = self._environments.finish_texts([self._places[each] for each in cut], unfinished)
        for conversation, reward in zip(cut, rewards, strict=True):
            conversation.reply.turn_rewards.append(reward)

    def _step(self, conversations: Sequence[Conversation]) -> list[Step]:
        places = [self._places[conversation] for conversation in conversations]
        return self._environments.step(places, [_reply(each) for each in conversations])


def _reply(conversation: Conversation) -> str:
    return without_thoughts(conversation.last_text, opened=False)
