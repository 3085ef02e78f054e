"""Responses that are left out of the loss, whatever their reward.

Their rewards still count in the mean and the standard deviation of their group, as in the published implementation.
A masked response has no gradient, and adds neither tokens nor a response to the denominators of the loss.
"""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout import Rollout
from ctpo.tasks import Task

VoidTurns = Literal["none", "response", "turn"]
"""Which responses are masked. A void turn has neither a tool call nor an answer.

`none`: none. `response`: responses without any tool call and without an answer (the published implementation).
`turn`: responses with a void turn, which can only be the last one (SimpleTIR).
"""


def check_void_turns(task: Task, void_turns: VoidTurns) -> None:
    """Check that the task can find the answer in a response, if void turns are to be masked.

    Raises:
        UserError: if the task has no `extract`.
    """
    if void_turns != "none" and task.extract is None:
        raise UserError(
            f"mask_void_turns={void_turns}: task {task.name!r} cannot find the answer in a response; give the task an "
            "`extract` function, or set mask_void_turns=none"
        )


def is_void(
    rollout: Rollout, tokenizer: PreTrainedTokenizerBase, task: Task | None, void_turns: VoidTurns
) -> bool:
    """Whether a response is masked because of a void turn."""
    if void_turns == "none" or task is None or task.extract is None:
        return False
    if void_turns == "response" and rollout.calls:
        return False
    own = rollout.response_mask
    if not own or not own[-1]:
        return False  # it ends with the output of a tool, so its last turn has a call
    first = len(own) - own[::-1].index(0) if 0 in own else 0
    last_turn = tokenizer.decode(rollout.completion_ids[first:], skip_special_tokens=True)
    return task.extract(last_turn) is None


def is_masked(
    rollout: Rollout,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    *,
    truncated: bool,
    void_turns: VoidTurns,
) -> bool:
    """Whether a response is left out of the loss.

    Args:
        rollout: the response.
        tokenizer: decodes it.
        task: finds the answer in it.
        truncated: TRL's `mask_truncated_completions`.
        void_turns: `mask_void_turns`.
    """
    return (truncated and is_truncated(rollout)) or is_void(rollout, tokenizer, task, void_turns)


def is_truncated(rollout: Rollout) -> bool:
    """Whether a response reached the length limit. Exact; TRL guesses from whether the last token ends a response."""
    return not rollout.finished
