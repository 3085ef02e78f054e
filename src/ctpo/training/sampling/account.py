"""What a rollout batch was and what it cost, as records and loggers report it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import gather_object

from ctpo.rollout import Rollout
from ctpo.rollout.turns import Accountable, Partner
from ctpo.tasks.tool import SUCCESS


@dataclass(kw_only=True)
class RolloutAccount:
    """Counts and times of the last rollout batch in this process."""

    responses: int = 0
    model_tokens: int = 0
    """Tokens that the model sampled."""
    seconds: float = 0.0
    """Wall-clock time of the whole batch, tools included."""
    tool_seconds: float = 0.0
    tool_calls: int = 0
    tool_failures: int = 0
    tool_executed: int = 0
    """Programs run in the sandbox: fewer than `tool_calls` if answers were already known."""
    masked_void: int = 0
    """Responses left out of the loss because of a void turn."""
    masked_truncated: int = 0
    """Responses left out of the loss because they reached the length limit."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """Responses by the judge's verdict, for a judge that distinguishes more than right and wrong."""

    @staticmethod
    def of(rollouts: Sequence[Rollout], seconds: float, partner: Partner | None) -> RolloutAccount:
        """The account of these rollouts, which took this wall-clock time; masks and verdicts are added later."""
        calls = [call for rollout in rollouts for call in rollout.calls]
        return RolloutAccount(
            responses=len(rollouts),
            model_tokens=sum(sum(rollout.response_mask) for rollout in rollouts),
            seconds=seconds,
            tool_seconds=partner.seconds if isinstance(partner, Accountable) else 0.0,
            tool_calls=len(calls),
            tool_failures=sum(call.status != SUCCESS for call in calls),
            tool_executed=partner.executed if isinstance(partner, Accountable) else len(calls),
        )

    def over_processes(self, accelerator: Any) -> RolloutAccount:
        """The account of the rollout batch over all processes. Counts are added; a time is that of the slowest."""
        if accelerator.num_processes == 1:
            return self
        everyone = [vars(account) for account in gather_object([self])]
        return RolloutAccount(
            **{name: _together(name, [each[name] for each in everyone]) for name in vars(self)}
        )


def added(one: RolloutAccount, other: RolloutAccount) -> RolloutAccount:
    """The account of two parts of a rollout batch that were sampled one after the other."""
    joined = {name: [value, vars(other)[name]] for name, value in vars(one).items()}
    return RolloutAccount(
        **{name: sum(pair) if "seconds" in name else _together(name, pair) for name, pair in joined.items()}
    )


def rollout_figures(account: RolloutAccount) -> dict[str, Any]:
    """What a record reports about masked responses and verdicts; empty if there were none."""
    figures: dict[str, Any] = {}
    if account.masked_void or account.masked_truncated:
        count = max(account.responses, 1)
        figures["masked_void"] = account.masked_void / count
        figures["masked_truncated"] = account.masked_truncated / count
        # TRL counts a masked response as one without tokens.
        figures["response_tokens"] = account.model_tokens / count
    for verdict, count in sorted(account.verdicts.items()):
        figures[f"judged_{verdict.replace(' ', '_')}"] = count
    return figures


def tool_figures(account: RolloutAccount) -> dict[str, float]:
    """Tool use under the names that TRL logs for its own tools; empty if no tool was called."""
    if not account.tool_calls:
        return {}
    return {
        "tools/call_frequency": account.tool_calls / max(account.responses, 1),
        "tools/failure_frequency": account.tool_failures / account.tool_calls,
    }


def _together(name: str, values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        keys = sorted({key for value in values for key in value})
        return {key: sum(value.get(key, 0) for value in values) for key in keys}
    return max(values) if "seconds" in name else sum(values)
