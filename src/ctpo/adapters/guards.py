"""Warnings about four mistakes that raise no error, but make a run train something else than its settings say.

They are: ratios that never leave 1, an anchor that belongs to another policy, log-probs rounded to bfloat16, and a
mask that is off by one token. Each is warned of once per process. Only the first `CALLS_EXAMINED` calls are examined,
or as many as the first updates take; after them a guard costs nothing.
"""

from __future__ import annotations

import warnings
from typing import Final

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from ctpo.objectives import Output

CALLS_EXAMINED: Final = 512
"""How many calls of a process are examined."""
INERT_UPDATES: Final = 3
"""How many updates after the first must have no ratio other than 1 before the warning. In the first on a batch the
ratios are 1 by right. An update counts if the one before it changed the weights: it had a loss other than 0, and an
optimizer of this process took a step at a learning rate other than 0."""
INERT_CALLS: Final = 64
"""The same in calls, where no optimizer steps in this process, because a server holds the model."""
INERT_LOG_RATIO: Final = 1e-6
"""The largest |log ratio| that still counts as a ratio of 1, in nats."""
FOREIGN_KL: Final = 0.5
"""The mean of d²/2 over a call's tokens, in nats, above which the anchor must be another policy's. Here d is the log
ratio. The limit is a root mean square of 1 nat per token; a policy a few updates away shows 0.01 to 0.1."""
ENOUGH_TOKENS: Final = 64
"""How many tokens must share a property before it counts as no accident."""
ENOUGH_ROWS: Final = 4
"""How many rows must share a property before it counts as no accident."""


class AdapterWarning(UserWarning):
    """The batch can be trained on, but the result is not what was asked for."""


class Guards:
    """The guards of one process. Call `look` after every call of the objective."""

    def __init__(self) -> None:
        self.settled: set[str] = set()
        """Guards that need no further look: they have warned, or a call has shown that all is well."""
        self._warned: set[str] = set()
        self._calls = 0
        self._inert_calls = 0
        self._inert_updates = 0
        self._steps_seen = steps.count
        self._had_loss = False
        self._shifted_rows = 0

    def look(self, out: Output, logps: Tensor, old_logps: Tensor, mask: Tensor) -> None:
        """Examine one call and warn of a mistake.

        Args:
            out: what the objective returned.
            logps: log-probs of the policy, padded [B, T] or one packed stream [N] (which counts as one row).
            old_logps: log-probs of the anchor, of the same shape.
            mask: True for tokens in the loss, of the same shape.
        """
        self._calls += 1
        if self._calls > CALLS_EXAMINED and ("inert" in self.settled or not steps.count):
            return
        with torch.no_grad():
            low, high = (out.stats[f"log_ratio_{end}"] for end in ("min", "max"))
            figures = (
                *(torch.maximum(high.abs(), low.abs()), out.stats["kl_k2"], out.stats["tokens"]),
                out.token_loss.abs().max() if out.token_loss.numel() else low.new_zeros(()),
            )
            largest, kl, tokens, loss = torch.stack([each.double() for each in figures]).tolist()
        self._look_for_inertia(largest, tokens, loss)
        if tokens >= ENOUGH_TOKENS and kl > FOREIGN_KL:
            self._warn(
                "anchor",
                f"the anchor's log-probs differ from the policy's by {(2 * kl) ** 0.5:.2f} nats per token (root mean "
                "square), so they come from another model, another temperature or another alignment; give those of "
                "the policy that sampled",
            )
        mask = mask != 0
        if "bf16" not in self.settled and tokens >= ENOUGH_TOKENS:
            self._look_for_rounding(logps, old_logps, mask)
            self.settled.add("bf16")
        if "mask" not in self.settled:
            self._look_for_shift(old_logps.reshape(-1, old_logps.shape[-1]), mask.reshape(-1, mask.shape[-1]))

    def _look_for_inertia(self, largest: float, tokens: float, loss: float) -> None:
        """Warn if no ratio of the first updates is other than 1. The calls between two steps are of one update."""
        if tokens == 0 or "inert" in self.settled:
            return
        if largest > INERT_LOG_RATIO:
            self.settled.add("inert")
            return
        if steps.count != self._steps_seen:
            self._inert_updates += self._had_loss
            self._steps_seen, self._had_loss = steps.count, False
        self._had_loss |= loss > 0
        self._inert_calls += 1
        updates, calls = self._inert_updates, self._inert_calls
        if updates >= INERT_UPDATES or (not steps.count and calls >= INERT_CALLS):
            seen = f"{updates + 1} updates" if updates else f"{calls} calls"
            self._warn(
                "inert",
                f"every ratio was 1 in {seen} in a row, so clipping "
                "and weights have no effect: the anchor's log-probs are always those of the current weights. One "
                "update per batch with recomputed anchors is on-policy; make minibatches smaller than the batch, or "
                "anchor at the log-probs of the rollout engine",
            )

    def _look_for_rounding(self, logps: Tensor, old_logps: Tensor, mask: Tensor) -> None:
        for name, value in (("policy's", logps), ("anchor's", old_logps)):
            held = value.detach()[mask]
            half = held.dtype in (torch.bfloat16, torch.float16)
            if half or bool((held.bfloat16().to(held.dtype) == held).all()):
                self._warn(
                    "bf16",
                    f"the {name} log-probs are rounded to bfloat16, which flips 5-9 % of clip decisions at 1k-64k "
                    "tokens; compute log-softmax in float32 and keep the result there",
                )

    def _look_for_shift(self, anchor: Tensor, mask: Tensor) -> None:
        """Warn if in every row the anchor's non-zero span is the mask's, moved by one token.

        Padding is 0 on one side of such a span, and a token lacks its log-prob on the other.
        """
        length = mask.shape[-1]
        if length < 3:
            return
        held = anchor.detach() != 0
        rows = torch.nonzero(mask.sum(-1) > 1).flatten()
        if not len(rows):
            return
        first, last = _span(mask[rows])
        start, end = _span(held[rows])
        step = start - first
        shifted = (end - last == step) & (step.abs() == 1)
        count = int(shifted.sum())
        if count < len(rows):
            self.settled.add("mask")  # one row that fits shows that the mask is right
            return
        self._shifted_rows += count
        if self._shifted_rows >= ENOUGH_ROWS:
            self._warn(
                "mask",
                f"the mask sits one token beside the anchor's log-probs in all of {self._shifted_rows} rows; score "
                "and mask the same tokens (position t of a causal model scores token t + 1)",
            )

    def _warn(self, guard: str, message: str) -> None:
        """Warn once per guard."""
        if guard not in self._warned:
            self._warned.add(guard)
            self.settled.add(guard)
            warnings.warn(f"ctpo: {message}.", AdapterWarning, stacklevel=4)


def _span(flags: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last position that is True in each row."""
    wide = flags.to(torch.uint8)
    return wide.argmax(-1), flags.shape[-1] - 1 - wide.flip(-1).argmax(-1)


class OptimizerSteps:
    """Counts the steps that change weights in this process, of whichever optimizer.

    Attributes:
        count: steps at a learning rate other than 0.
    """

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._step)

    def _step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        self.count += any(float(group.get("lr", 1.0)) != 0.0 for group in optimizer.param_groups)


steps = OptimizerSteps()
guards = Guards()
"""The guards of this process. All adapters and losses share them, so that a warning comes once."""
