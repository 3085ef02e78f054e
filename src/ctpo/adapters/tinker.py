"""The loss for Tinker: `training_client.forward_backward_custom(data, ctpo_loss("ctpo"))`. It runs on the client.

Beside its `target_tokens`, every datum needs `logprobs` (the sampler's, which are the anchor), `advantages` and `mask`,
with one value per token. The RL data of Tinker's cookbook have them. Nothing is divided afterwards, so the preset's own
reduction applies to the data of a call. If a minibatch takes several calls, give `num_tokens` and `num_sequences`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import floats, objective_for
from ctpo.errors import UserError
from ctpo.objectives import turns_of

Loss = Callable[[Sequence[Any], Sequence[Tensor]], tuple[Tensor, dict[str, float]]]
_FIELDS = ("logprobs", "advantages", "mask")


def ctpo_loss(
    preset: str = "ctpo", *, num_tokens: int | None = None, num_sequences: int | None = None, **knobs: Any
) -> Loss:
    """A preset as a loss for `forward_backward_custom`.

    Args:
        preset: its name.
        num_tokens: tokens in the minibatch; by default those of the call.
        num_sequences: sequences in the minibatch; by default those of the call.
        knobs: the preset's own settings (`ctpo.objectives.preset`).
    """
    objective = objective_for(preset, knobs, trainer_reduces=False)

    def loss(data: Sequence[Any], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        fields = [[_field(datum, name) for datum in data] for name in _FIELDS]
        old, advantages, mask = (torch.cat(each) for each in fields)
        logps = torch.cat(list(logprobs))
        lengths = torch.tensor([0, *(len(row) for row in logprobs)])
        totals: dict[str, Any] = {"num_tokens": num_tokens, "num_sequences": num_sequences}
        totals["turn_ids"] = turns_of(mask)
        out = objective(logps, old, advantages, mask, cu_seqlens=lengths.cumsum(0), **totals)
        guards.look(out, logps, old, mask)
        return out.loss, floats(out.stats)

    return loss


def _field(datum: Any, name: str) -> Tensor:
    values = datum.loss_fn_inputs.get(name)
    if values is None:
        raise UserError(f"loss_fn_inputs lacks {name!r}; give every datum {', '.join(_FIELDS)}")
    return torch.as_tensor(values.to_torch())
