"""Responses that are kept out of the loss, whatever their reward.

Their rewards still count in the mean and spread of their group, as in the published implementation; what they do
not do is push the policy. A masked response adds neither tokens nor a response to the loss's denominators.
"""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout import Rollout
from ctpo.tasks import Task

VoidTurns = Literal["none", "response", "turn"]
"""`response`: mask a response without any tool call and without an answer (the published implementation).
`turn`: mask a response with any turn that has neither, which can only be its last (SimpleTIR)."""


def check_void_turns(task: Task, void_turns: VoidTurns) -> None:
    """Refuse where it cannot be told whether a response holds an answer.

    Raises:
        UserError: if the task has no `extract`.
    """
    if void_turns != "none" and task.extract is None:
        raise UserError(
            f"mask_void_turns={void_turns}: task {task.name!r} does not say what an answer looks like; give the task "
            "`extract`, or set mask_void_turns=none"
        )


def is_void(
    rollout: Rollout, tokenizer: PreTrainedTokenizerBase, task: Task | None, void_turns: VoidTurns
) -> bool:
    """Whether a response does nothing in a turn, or in all of them: no tool call, no answer."""
    if void_turns == "none" or task is None or task.extract is None:
        return False
    if void_turns == "response" and rollout.calls:
        return False
    own = rollout.response_mask
    if not own or not own[-1]:
        return False  # it ended with a tool's output, so its last turn called
    first = len(own) - own[::-1].index(0) if 0 in own else 0
    last_turn = tokenizer.decode(rollout.completion_ids[first:], skip_special_tokens=True)
    return task.extract(last_turn) is None


def is_truncated(rollout: Rollout) -> bool:
    """Whether a response ran into the length limit. Exact, where TRL looks whether the last token ends one."""
    return not rollout.finished
