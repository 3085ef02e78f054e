"""The loss for NeMo-RL: `grpo_train(…, loss_fn=CTPOLoss("ctpo"), …)`.

NeMo-RL passes whole rows that are shifted by one: position t of the log-probs scores token t + 1. The denominators are
its totals over all micro-batches and ranks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import floats, framework, objective_for
from ctpo.objectives import anchor_logps, correct_rollout


class CTPOLoss:
    """A preset as NeMo-RL's `LossFunction`.

    Args:
        preset: its name.
        anchor: "old" for `prev_logprobs`, or "rollout" for `generation_logprobs`.
        truncate: the largest sequence weight π_prev / π_generation; None for no correction.
        knobs: the preset's own settings, with its reduction (`ctpo.objectives.preset`).
    """

    def __init__(
        self, preset: str = "ctpo", *, anchor: str = "old", truncate: float | None = None, **knobs: Any
    ) -> None:
        nemo = framework("nemo_rl.algorithms.loss.interfaces", "NeMo-RL from its repository")
        self.objective = objective_for(preset, knobs, trainer_reduces=False)
        self.anchor, self.truncate = anchor, truncate
        by_token = self.objective.reduction.name == "token-mean"
        self.input_type = nemo.LossInputType.LOGPROB
        self.loss_type = nemo.LossType.TOKEN_LEVEL if by_token else nemo.LossType.SEQUENCE_LEVEL

    def __call__(
        self,
        data: Any,
        global_valid_seqs: Tensor,
        global_valid_toks: Tensor,
        next_token_logprobs: Tensor,
        **_: Any,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch and its statistics. Summed over micro-batches and ranks, it is the minibatch's."""
        mask = (data["token_mask"][:, 1:] * data["sample_mask"].unsqueeze(-1)) != 0
        old, rollout, advantages = (
            data[name][:, 1:] for name in ("prev_logprobs", "generation_logprobs", "advantages")
        )
        anchor = anchor_logps(self.anchor, old, rollout)
        extra = {}
        weights = None
        if self.truncate is not None and self.anchor == "old":
            correction = correct_rollout(old, rollout, mask, threshold=self.truncate)
            weights, extra = correction.weights, correction.stats
        out = self.objective(
            next_token_logprobs, anchor, advantages, mask,
            num_tokens=global_valid_toks, num_sequences=global_valid_seqs, weights=weights,
        )  # fmt: skip
        guards.look(out, next_token_logprobs, anchor, mask)
        counted = {"loss": out.loss.item(), "num_valid_samples": data["sample_mask"].sum().item()}
        return out.loss, {**floats({**out.stats, **extra}), **counted}
