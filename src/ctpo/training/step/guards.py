"""Skipping updates whose log-probs, loss or gradient are not finite.

One such update would put NaN into every weight. It is skipped as if its minibatch did not exist: the optimizer keeps
its moments and its step count. The learning rate and the data move on, because they count the steps of the run. Several
skipped updates in a row mean that skipping does not help. They end the run with a diagnosis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.runs.checkpoints import advice
from ctpo.training.processes import any_of
from ctpo.training.view import TrainerView

_SOURCES = ("log-probs", "loss", "gradient")
"""In the order in which they are computed, so that the first that is not finite is the cause."""
_ADVICE = {
    "log-probs": "the model gives no finite log-probs though its weights are finite: use float32 or bfloat16",
    "loss": "log-probs are finite and the loss is not: check the rewards and the objective's settings",
    "gradient": "the loss is finite and its gradient is not: lower learning_rate, or use float32",
}


class NonFiniteUpdates(UserError):
    """Too many updates in a row were skipped, or the weights are no longer finite."""


@dataclass
class UpdateGuard:
    """Decides about each update. Every process has a guard, and all of them decide alike."""

    limit: int
    """How many updates skipped in a row end the run."""
    in_a_row: int = 0
    """Updates skipped since the last one that was taken."""
    skipped: int = 0
    """Updates skipped since the last `flush`."""
    total: int = 0
    """Updates skipped in the whole run."""
    last_finite_norm: float | None = None
    """The gradient norm of the last update that was taken."""
    _bad: list[Tensor] = field(default_factory=list, repr=False)

    def observe(self, loss: Tensor, logps: Tensor, mask: Tensor) -> None:
        """Take one micro-batch of the update. This does not wait for the device.

        Args:
            loss: scalar.
            logps: [B, T].
            mask: [B, T] boolean, true on the tokens whose log-probs count.
        """
        logps_bad = (~logps.detach().isfinite() & mask).any()
        self._bad.append(torch.stack([logps_bad, ~loss.detach().isfinite().all()]))

    def judge(self, model: torch.nn.Module, grad_norm: Tensor | float | None, accelerator: Any) -> bool:
        """Whether the update may be taken. If not, its gradients are dropped, so that the optimizer skips it.

        Every process must call this once per update.

        Args:
            model: the model being trained.
            grad_norm: the norm of its gradient.
            accelerator: reduces over processes.

        Raises:
            NonFiniteUpdates: if `limit` updates in a row were skipped.
        """
        device = accelerator.device
        whole = getattr(grad_norm, "full_tensor", None)
        grad_norm = whole() if whole else grad_norm  # FSDP2's is a DTensor
        norm = torch.as_tensor(float("nan") if grad_norm is None else grad_norm, device=device).detach()
        seen = (
            torch.stack([bad.to(device) for bad in self._bad]).any(0)
            if self._bad
            else torch.zeros(2, device=device)
        )
        self._bad.clear()
        bad = torch.cat([seen.float(), (~norm.isfinite()).float().reshape(1)])
        causes = accelerator.reduce(bad, reduction="sum").tolist()
        if not any(causes):
            self.in_a_row, self.last_finite_norm = 0, float(norm)
            return True
        self.in_a_row += 1
        self.skipped += 1
        self.total += 1
        for parameter in model.parameters():
            parameter.grad = None
        if self.in_a_row >= self.limit:
            cause = next(name for name, count in zip(_SOURCES, causes, strict=True) if count)
            raise NonFiniteUpdates(self._diagnosis(model, cause))
        return False

    def flush(self) -> int:
        """How many updates were skipped since the last call."""
        skipped, self.skipped = self.skipped, 0
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {name: getattr(self, name) for name in ("in_a_row", "skipped", "total", "last_finite_norm")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)

    def _diagnosis(self, model: torch.nn.Module, cause: str) -> str:
        broken = nonfinite_weight(model)
        head = f"{self.in_a_row} updates in a row were skipped (max_nonfinite_updates={self.limit})"
        norm = (
            f"; the last finite gradient norm was {self.last_finite_norm:.3g}"
            if self.last_finite_norm
            else ""
        )
        if broken is not None:
            return f"{head}: weights are no longer finite ({broken}){norm}; start again with a lower learning_rate"
        return f"{head}: {_ADVICE[cause]}{norm}"


def nonfinite_weight(model: torch.nn.Module) -> str | None:
    """The name of the first weight with a value that is not finite, or None.

    Of a sharded weight, only the shard of this process is examined.
    """
    for name, parameter in model.named_parameters():
        held = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # FSDP2's shard
        if not bool(held.detach().isfinite().all()):
            return name
    return None


def refuse_nonfinite_weights(trainer: TrainerView) -> None:
    """Check that all weights are finite, before a checkpoint is written.

    Checkpoints of broken weights would replace the good ones after a while. Every process must call this.

    Raises:
        NonFiniteUpdates: in every process, if a weight of any process is not finite.
    """
    broken = nonfinite_weight(trainer.model)
    if any_of(broken is not None, trainer.accelerator):
        raise NonFiniteUpdates(
            f"weights are no longer finite after update {trainer.state.global_step} "
            f"({broken or 'in another process'}), so no checkpoint was saved; "
            f"start again with a lower learning_rate; {advice(Path(trainer.args.output_dir), room=False)}"
        )
