"""TRL's experimental `AsyncGRPOTrainer` with an objective: `CTPOAsyncTrainer(…, preset="ctpo", knobs={…})`.

TRL computes forward pass, loss and records in one method. Here that method runs as it is and a wrapper notes what the
model returned. The loss is then ours, from the same log-probs; TRL's is dropped, and its records stay. TRL keeps no
old policy, so the anchor is what the generator reported. It divides by the tokens of the micro-batch of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import floats, framework, objective_for

_INSTALL: Final = "trl>=1.16 (pip install trl)"
_trainer = framework("trl.experimental.async_grpo.async_grpo_trainer", _INSTALL)


class CTPOAsyncTrainer(_trainer.AsyncGRPOTrainer):  # type: ignore[misc, name-defined]
    """`AsyncGRPOTrainer` with a preset as its loss.

    Args:
        args: what `AsyncGRPOTrainer` takes.
        preset: the objective's name.
        knobs: the preset's settings. The reduction is TRL's.
        kwargs: more of what `AsyncGRPOTrainer` takes.

    Raises:
        ValueError: for a preset or knob that does not exist.
        UserError: for a knob that repeats a setting of TRL.
    """

    def __init__(
        self, *args: Any, preset: str = "ctpo", knobs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.objective = objective_for(preset, knobs or {})
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This process's share of the loss of a micro-batch."""
        seen = _Noted(model)
        super().compute_loss(seen, inputs, return_outputs, num_items_in_batch)
        chosen = inputs["token_index"] >= 0
        index = inputs["token_index"][chosen]
        logps = seen.outputs.log_probs.flatten()[index]
        old, advantages, segments = (
            inputs[name][chosen] for name in ("old_log_probs", "advantages", "segment_id")
        )
        positions = inputs["position_ids"][inputs["attention_mask"].bool()][index]
        mask = torch.ones_like(logps, dtype=torch.bool)
        out = self.objective(
            logps, old, advantages, mask, segment_ids=segments, turn_ids=_turns(positions, segments)
        )
        guards.look(out, logps, old, mask)
        for name, value in floats(out.stats).items():
            self._metrics["train"][name].append(value)
        tokens = (inputs["global_n_tokens"][0] / self.accelerator.num_processes).clamp(min=1.0)
        loss = out.loss / tokens.to(torch.float32)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * seen.outputs.aux_loss
        share: Tensor = loss / self.current_gradient_accumulation_steps
        return share


class _Noted:
    """A model that keeps what it returned last."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.outputs: Any = None

    def __call__(self, **inputs: Any) -> Any:
        self.outputs = self._model(**inputs)
        return self.outputs


def _turns(positions: Tensor, segments: Tensor) -> Tensor:
    """The number of each token's turn, from the tokens' positions in their sequences [N]: a gap ends a turn."""
    ends = torch.ones_like(segments, dtype=torch.bool)
    ends[1:] = (positions[1:] != positions[:-1] + 1) | (segments[1:] != segments[:-1])
    return ends.cumsum(0) - 1
