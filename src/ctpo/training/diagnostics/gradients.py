"""The norm of each update's gradient, and how much of it is noise where an update has several micro-batches.

Let an update's gradient be a sum over B independent responses with the mean G and the total variance S (trace of the
covariance) per response. The sum over any b of them then has the mean square b²|G|² + b·S. While micro-batches
accumulate, the norm of the gradient so far is measured before each of them. What the square grew by is one equation
per micro-batch in |G|² and S, which are solved by least squares. With two micro-batches this is the simple estimator of
"An Empirical Model of Large-Batch Training", arXiv 1812.06162, appendix A.1. No gradient is copied.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype
from ctpo.training.view import TrainerView

GRADIENT_FIGURES: Final = 3
"""Per update: the norm of its gradient, B²|G|² and B·S, the squares of its mean and of its noise; NaN if unknown."""


class UpdateGradients:
    """Measures the gradients of one trainer's updates. Nothing here waits for the device.

    Noise is measured where gradients lie whole in each process and unscaled: not with FSDP, DeepSpeed or fp16.
    """

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer = trainer
        self._rows: list[int] = []
        self._squares: list[Tensor] = []
        self._norms: dict[int, Tensor] = {}
        self._partial: dict[int, Tensor] = {}

    def starting(self, rows: int) -> None:
        """Take note that the backward pass of a micro-batch with this many responses is about to begin."""
        if self._rows and self._whole():
            gradients = [each.grad for each in self._trainer.model.parameters() if each.grad is not None]
            if gradients and not hasattr(gradients[0], "full_tensor"):
                norms = torch.stack(torch._foreach_norm(gradients))
                self._squares.append(norms.to(prefix_dtype(norms.device)).square().sum())
        self._rows.append(rows)

    def updated(self, norm: Any, update: int) -> None:
        """Take the norm of an update's whole gradient before it is clipped, and end the update.

        Args:
            norm: a number or a tensor; None if there is none.
            update: the number of the update.
        """
        device = self._trainer.accelerator.device
        whole = getattr(norm, "full_tensor", None)
        norm = whole() if whole else norm  # FSDP2's is a DTensor
        value = torch.as_tensor(math.nan if norm is None else norm, device=device)
        self._norms[update] = value.detach().to(prefix_dtype(device))
        self._partial[update] = self._equations(device)
        self._rows, self._squares = [], []

    def close(self, accelerator: Any) -> dict[int, Tensor]:
        """[3] the figures of each update since the last call, over all processes. Every process must call."""
        numbers = sorted(self._norms)
        if not numbers:
            return {}
        partial = accelerator.gather(torch.stack([self._partial[number] for number in numbers])[None])
        figures = {
            number: _figures(self._norms[number], partial[:, place]) for place, number in enumerate(numbers)
        }
        self._norms, self._partial = {}, {}
        return figures

    def state_dict(self) -> dict[str, Any]:
        """What was measured since the last `close`, for a checkpoint. A checkpoint is written between updates."""
        return {"norms": self._norms, "partial": self._partial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._norms, self._partial = dict(state["norms"]), dict(state["partial"])

    def _whole(self) -> bool:
        trainer = self._trainer
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        return not sharded and getattr(trainer.accelerator, "scaler", None) is None

    def _equations(self, device: torch.device) -> Tensor:
        """[8] of this process's micro-batches but the last: the sums aa, ab, bb, az, bz of their equations
        z = a|G|² + b·S, then the responses in them, the square of their gradient, and the responses in all."""
        wide, share = prefix_dtype(device), self._trainer.accelerator.num_processes
        sums = torch.zeros(8, dtype=wide, device=device)
        done, square = 0, torch.zeros((), dtype=wide, device=device)
        for rows, after in zip(self._rows, self._squares, strict=False):
            z = (
                after.to(square) / share**2 - square
            )  # the loss is multiplied by the processes, see the trainer
            a, b = float((done + rows) ** 2 - done**2), float(rows)
            terms = [sums.new_tensor(a * a), sums.new_tensor(a * b), sums.new_tensor(b * b), a * z, b * z]
            sums[:5] += torch.stack(terms)
            done, square = done + rows, square + z
        sums[5:] = torch.stack([sums.new_tensor(done), square, sums.new_tensor(sum(self._rows))])
        return sums


def _figures(norm: Tensor, partial: Tensor) -> Tensor:
    """[3] the figures of one update.

    Args:
        norm: of the whole gradient.
        partial: [processes, 8] the equations of each process. The last one follows from the whole gradient.
    """
    aa, ab, bb, az, bz = partial[:, :5].sum(dim=0).unbind()
    done, squares, rows = partial[:, 5:].unbind(dim=1)
    everything = rows.sum()
    z, a, b = norm.square() - squares.sum(), everything.square() - done.square().sum(), (rows - done).sum()
    aa, ab, bb, az, bz = aa + a * a, ab + a * b, bb + b * b, az + a * z, bz + b * z
    determinant = aa * bb - ab * ab
    mean, noise = (az * bb - bz * ab) / determinant, (bz * aa - az * ab) / determinant
    known = (done.min() > 0) & (determinant > 1e-9 * aa * bb)
    unknown = torch.full_like(norm, math.nan)
    return torch.stack(
        [
            norm,
            torch.where(known, mean * everything.square(), unknown),
            torch.where(known, noise * everything, unknown),
        ]
    )
