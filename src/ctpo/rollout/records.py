"""What one sampled response consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctpo.tasks.calls import FUNCTION


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call of a tool that the model made, and what came back.

    Example:
        ToolCall(program="print(6 * 7)", status="ok", output="42").name  # "python"
    """

    name: str = FUNCTION
    """The tool that was called. A call that could not be used may name one that does not exist."""
    program: str
    """The program of the Python tool. For any other call, the call as the model wrote it."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What a function was called with; empty for the Python tool, and if the call could not be used."""
    status: str
    """How it ended: ok, error, timeout, or another word of the sandbox's."""
    output: str
    """The result as the model reads it. If the tool has tags of its own for results, they are included."""


@dataclass(kw_only=True)
class Rollout:
    """One response, token by token, exactly as the model saw it. Nothing is ever tokenised again.

    `completion_ids`, `response_mask` and `logps` have one entry per response token, in order.

    Example:
        rollout = Rollout(prompt_ids=[5], completion_ids=[7, 8], response_mask=[1, 0], logps=[-0.5, 0.0])
        sum(rollout.response_mask)  # 1
    """

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    response_mask: list[int] = field(default_factory=list)
    """1 where the model sampled the token, 0 where a tool's output was inserted."""
    logps: list[float] = field(default_factory=list)
    """The log-probability of each sampled token in nats, at the sampling temperature; 0.0 for a tool's tokens."""
    calls: list[ToolCall] = field(default_factory=list)
    turn_rewards: list[tuple[int, float]] = field(default_factory=list)
    """The rewards of single turns, in order: the index of the turn's last token in the response, and the reward."""
    finished: bool = False
    """Whether the model or its partner ended the response. If not, the response reached the length limit."""
