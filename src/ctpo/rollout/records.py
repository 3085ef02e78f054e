"""What one sampled response is made of."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One program the model wrote and what came back."""

    program: str
    status: str
    """The sandbox's word for how it ended: ok, error, timeout, …"""
    output: str
    """The text that was put back into the response, tags included."""


@dataclass(kw_only=True)
class Rollout:
    """One response, token by token, as the model saw it: nothing is ever re-tokenised.

    `completion_ids`, `model_mask` and `logps` have one entry a response token, in order.
    """

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    model_mask: list[int] = field(default_factory=list)
    """1 where the model sampled the token, 0 where the tool's output was inserted."""
    logps: list[float] = field(default_factory=list)
    """Natural log-probability of each sampled token at the sampling temperature; 0.0 on tool tokens."""
    calls: list[ToolCall] = field(default_factory=list)
    finished: bool = False
    """Whether the model ended the response itself, rather than running into the length limit."""
