"""Four mistakes that make a run train something else than it says; each is told once a process.

Trainers hand over what their settings made of a batch, and none of these four raises anything: a ratio that
never leaves 1, an anchor that belongs to another policy, log-probs rounded to bfloat16, and a mask that is off
by one. The first LOOKS calls are examined; after them a guard costs nothing.
"""

from __future__ import annotations

import warnings
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives import Output

LOOKS: Final = 512
"""Calls of a process that are examined."""
INERT_CALLS: Final = 64
"""Calls in a row without any ratio off 1 before it is said: the micro-batches of a first update are so by right."""
INERT_LOG_RATIO: Final = 1e-6
"""Largest |log ratio| that still counts as 1, nats."""
FOREIGN_KL: Final = 0.5
"""Mean of d²/2 over a call's tokens, nats, above which the anchor is another policy's: a root mean square of 1 nat
a token, where a policy a few updates away shows 0.01 to 0.1."""
ENOUGH_TOKENS: Final = 64
"""Tokens from which a property of all of them is no accident."""
ENOUGH_ROWS: Final = 4
"""Rows, likewise."""


class AdapterWarning(UserWarning):
    """A hand-over that trains, but not what was asked."""


class Guards:
    """The guards of one process. `look` after every call."""

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.settled: set[str] = set()
        """Guards that have seen enough: what one call disproves need not be looked at again."""
        self._calls = 0
        self._inert = 0
        self._shifted_rows = 0

    def look(self, out: Output, logps: Tensor, old_logps: Tensor, mask: Tensor) -> None:
        """Examine one call; padded [B, T] or one packed stream [N] (taken as one row).

        Args:
            out: what the objective returned.
            logps, old_logps, mask: what it was given.
        """
        self._calls += 1
        if self._calls > LOOKS:
            return
        with torch.no_grad():
            low, high = (out.stats[f"log_ratio_{end}"] for end in ("min", "max"))
            spread = torch.maximum(high.abs(), low.abs())
            kl, tokens = out.stats["kl_k2"], out.stats["tokens"]
            spread_, kl_, tokens_ = torch.stack([x.double() for x in (spread, kl, tokens)]).tolist()
        self._look_for_inertia(spread_, tokens_)
        if tokens_ >= ENOUGH_TOKENS and kl_ > FOREIGN_KL:
            self._tell(
                "anchor",
                f"the anchor's log-probs differ from the policy's by {(2 * kl_) ** 0.5:.2f} nats a token (root mean "
                "square): another model's, another temperature's or another alignment's; the ratio needs those of "
                "the policy that sampled",
            )
        mask = mask != 0
        if "bf16" not in self.settled and tokens_ >= ENOUGH_TOKENS:
            self._look_for_rounding(logps, old_logps, mask)
            self.settled.add("bf16")
        if "mask" not in self.settled:
            self._look_for_shift(old_logps.reshape(-1, old_logps.shape[-1]), mask.reshape(-1, mask.shape[-1]))

    def _look_for_inertia(self, spread: float, tokens: float) -> None:
        if tokens == 0:
            return
        self._inert = self._inert + 1 if spread <= INERT_LOG_RATIO else -LOOKS
        if self._inert >= INERT_CALLS:
            self._tell(
                "inert",
                f"every ratio was 1 in {self._inert} calls in a row, so clipping and weights do nothing: one update "
                "a batch with recomputed anchors is on-policy; make mini-batches smaller than the batch, or "
                "anchor at the rollout engine's log-probs",
            )

    def _look_for_rounding(self, logps: Tensor, old_logps: Tensor, mask: Tensor) -> None:
        for name, value in (("policy's", logps), ("anchor's", old_logps)):
            held = value.detach()[mask]
            half = held.dtype in (torch.bfloat16, torch.float16)
            if half or bool((held.bfloat16().to(held.dtype) == held).all()):
                self._tell(
                    "bf16",
                    f"the {name} log-probs are rounded to bfloat16, which flips 5-9 % of clip decisions at 1k-64k "
                    "tokens; compute log-softmax in float32 and keep it there",
                )

    def _look_for_shift(self, anchor: Tensor, mask: Tensor) -> None:
        """The anchor's non-zero span equals the mask's, moved by one: padding on one side, a token on the other."""
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
            self.settled.add("mask")  # one row that fits is proof enough
            return
        self._shifted_rows += count
        if self._shifted_rows >= ENOUGH_ROWS:
            self._tell(
                "mask",
                f"the mask sits one token beside the anchor's log-probs in all of {self._shifted_rows} rows: score "
                "and mask the same tokens (position t of a causal model scores token t + 1)",
            )

    def _tell(self, what: str, message: str) -> None:
        if what not in self.told:
            self.told.add(what)
            self.settled.add(what)
            warnings.warn(f"ctpo: {message}.", AdapterWarning, stacklevel=4)


def _span(flags: Tensor) -> tuple[Tensor, Tensor]:
    """First and last position that is set, of each row."""
    wide = flags.to(torch.uint8)
    return wide.argmax(-1), flags.shape[-1] - 1 - wide.flip(-1).argmax(-1)


guards = Guards()
"""Of this process: a warning is worth one line, however many adapters and losses run in it."""
