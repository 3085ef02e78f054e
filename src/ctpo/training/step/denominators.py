"""The tokens and responses of a whole optimizer step, by which the loss of each of its micro-batches is divided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctpo.training.scoring.microbatch import MicroBatch
from ctpo.training.view import TrainerView


class Denominators:
    """Counts the response tokens and the responses of optimizer steps, over all their micro-batches and processes."""

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer = trainer
        self._counted: Any = None
        self._counts = torch.zeros(0, 2)

    def of(self, buffered: list[dict[str, Any]], step: int) -> dict[str, Tensor]:
        """The two entries that `MicroBatch.of` reads. Every process must call.

        `denominators` says how they are counted. If a step accumulates over several rollout batches, those to come are
        assumed to be like this one.

        Args:
            buffered: the micro-batches of the rollout batch, as TRL's dictionaries.
            step: micro-batches trained on so far.
        """
        trainer, in_batch = self._trainer, self._trainer.args.steps_per_generation
        accumulation = trainer.current_gradient_accumulation_steps
        width = min(accumulation, in_batch)
        if self._counted is not buffered:  # one collective per rollout batch
            batches = [MicroBatch.of(part) for part in buffered]
            counts = torch.stack([torch.stack([each.num_tokens, each.num_sequences]) for each in batches])
            self._counted = buffered
            self._counts = trainer.accelerator.reduce(counts, reduction="sum")
        first = step % in_batch // width * width
        tokens, sequences = (self._counts[first : first + width].sum(dim=0) * (accumulation / width)).unbind()
        if trainer.args.denominators != "minibatch":
            own = MicroBatch.of(buffered[step % in_batch])
            shares = accumulation * trainer.accelerator.num_processes
            sequences = sequences.new_full((), len(own) * shares)
            if trainer.args.denominators == "micro-batch":
                tokens = own.num_tokens * shares
            else:
                tokens = self._counts[:, 0].sum() * (accumulation / in_batch)
        return {"minibatch_num_tokens": tokens, "minibatch_num_sequences": sequences}
