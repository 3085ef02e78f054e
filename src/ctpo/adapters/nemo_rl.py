"""The loss for NeMo-RL: `grpo_train(…, loss_fn=CTPOLoss("ctpo"), …)`.

NeMo-RL passes whole rows that are shifted by one: position t of the log-probs scores token t + 1. The denominators are
its totals over all micro-batches and ranks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import floats, framework, objective_for
from ctpo.errors import UserError
from ctpo.objectives import RolloutCorrection, anchor_logps, correct_rollout, named_correction, turns_of
from ctpo.old_names import current_value


class CTPOLoss:
    """A preset as NeMo-RL's `LossFunction`.

    Args:
        preset: its name.
        anchor: "old" for `prev_logprobs`, or "rollout" for `generation_logprobs`.
        correction: the rollout correction of π_prev / π_generation (`ctpo.objectives.named_correction`). It takes the
            place of NeMo-RL's own, which is part of the loss that this one replaces. None for no correction.
        truncate: the old name of `correction=named_correction("recipe", cap=…)`.
        knobs: the preset's own settings, with its reduction (`ctpo.objectives.preset`).

    Raises:
        UserError: for a correction that weighs beside the anchor "rollout", whose ratio already holds the difference,
            or one whose denominators do not count rejected tokens, which NeMo-RL has counted before.
    """

    def __init__(
        self,
        preset: str = "ctpo",
        *,
        anchor: str = "old",
        correction: RolloutCorrection | None = None,
        truncate: float | None = None,
        **knobs: Any,
    ) -> None:
        nemo = framework("nemo_rl.algorithms.loss.interfaces", "NeMo-RL from its repository")
        self.objective = objective_for(preset, knobs, trainer_reduces=False)
        if truncate is not None:
            correction = named_correction("recipe", cap=current_value("truncate", "correction", truncate))
        self.anchor, self.correction = anchor, correction
        if correction is not None:
            _check(correction, anchor)
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
        weights, turns = None, turns_of(mask)
        if self.correction is not None:
            corrected = correct_rollout(old, rollout, mask, self.correction, turn_ids=turns)
            weights = corrected.weights
            extra = {f"correction_{name}": value for name, value in corrected.stats.items()}
        out = self.objective(
            next_token_logprobs, anchor, advantages, mask,
            num_tokens=global_valid_toks, num_sequences=global_valid_seqs, weights=weights, turn_ids=turns,
        )  # fmt: skip
        guards.look(out, next_token_logprobs, anchor, mask)
        counted = {"loss": out.loss.item(), "num_valid_samples": data["sample_mask"].sum().item()}
        return out.loss, {**floats({**out.stats, **extra}), **counted}


def _check(correction: RolloutCorrection, anchor: str) -> None:
    if anchor == "rollout" and correction.weight is not None:
        raise UserError(
            "correction: its weights beside anchor='rollout' would count the engine's difference twice; use "
            "anchor='old', or a correction that only rejects"
        )
    if correction.denominator == "kept":
        raise UserError(
            "correction: denominator='kept' needs totals without the rejected tokens, and NeMo-RL's count them; use "
            "denominator='all'"
        )
