"""What one sampled response consists of."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One program that the model wrote, and what came back."""

    program: str
    status: str
    """The sandbox's word for how the program ended: ok, error, timeout, …"""
    output: str
    """The text that was put into the response, result tags included."""


@dataclass(kw_only=True)
class Rollout:
    """One response, token by token, exactly as the model saw it. Nothing is ever tokenised again.

    `completion_ids`, `response_mask` and `logps` have one entry per response token, in order.
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
