"""Tinker: `training_client.forward_backward_custom(data, ctpo_loss("ctpo"))`; the loss runs on the client.

Every datum carries `logprobs` (the sampler's: the anchor), `advantages` and `mask` beside its `target_tokens`, as
the cookbook's RL data do, one value a token. Nothing divides afterwards, so the preset's own reduction over
the data of the call stands; give `num_tokens` and `num_sequences` where a mini-batch takes several calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import floats, objective_for
from ctpo.errors import UserError

Loss = Callable[[Sequence[Any], Sequence[Tensor]], tuple[Tensor, dict[str, float]]]
_FIELDS = ("logprobs", "advantages", "mask")


def ctpo_loss(
    preset: str = "ctpo", *, num_tokens: int | None = None, num_sequences: int | None = None, **knobs: Any
) -> Loss:
    """A loss for `forward_backward_custom`.

    Args:
        preset, knobs: see `ctpo.objectives.preset`.
        num_tokens, num_sequences: totals of the mini-batch; by default those of the call.
    """
    objective = objective_for(preset, knobs, trainer_reduces=False)

    def loss(data: Sequence[Any], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        fields = [[_field(datum, name) for datum in data] for name in _FIELDS]
        old, advantages, mask = (torch.cat(each) for each in fields)
        logps = torch.cat(list(logprobs))
        lengths = torch.tensor([0, *(len(row) for row in logprobs)])
        totals: dict[str, Any] = {"num_tokens": num_tokens, "num_sequences": num_sequences}
        out = objective(logps, old, advantages, mask, cu_seqlens=lengths.cumsum(0), **totals)
        guards.look(out, logps, old, mask)
        return out.loss, floats(out.stats)

    return loss


def _field(datum: Any, name: str) -> Tensor:
    values = datum.loss_fn_inputs.get(name)
    if values is None:
        raise UserError(f"loss_fn_inputs lacks {name!r}; give every datum {', '.join(_FIELDS)}")
    return torch.as_tensor(values.to_torch())
