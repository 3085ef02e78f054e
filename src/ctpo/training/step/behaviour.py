"""The policy that samples: the one that learns, or an older one if `behaviour_lag` is set.

In asynchronous training, responses come from weights that the learner has left behind. `behaviour_lag=k` makes that lag
exact and repeatable in one process. Rollout batch n, counted from 1, is sampled by the weights after rollout batch
n − k − 1, or by the initial weights as long as there are none so old. Only the weights that are trained are copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ctpo.training.view import TrainerView


class Behaviour:
    """Keeps the weights of the last `lag` rollout batches, and puts the oldest into the model while it samples.

    Every process keeps its own copies. With a lag of 0 it does nothing.

    Raises:
        ValueError: if there is a lag and the weights are sharded over processes.
    """

    def __init__(self, trainer: TrainerView, lag: int) -> None:
        if lag and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise ValueError(
                f"behaviour_lag={lag} needs whole weights in every process, which FSDP and DeepSpeed do not keep; "
                "use behaviour_lag=0 or plain data parallelism"
            )
        self.lag = lag
        self.age = 0
        """Rollout batches between the weights that sampled the rollout batch and those that first learned from it."""
        self._trainer = trainer
        self._past: deque[list[Tensor]] = deque()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """A context in which the model has its weights of `lag` rollout batches ago. Afterwards it has the present
        ones again, bit for bit."""
        if not self.lag:
            yield
            return
        present = [weight.detach().clone() for weight in self._weights()]
        self._past.append(present)
        self.age = len(self._past) - 1
        self._set_weights(self._past[0])
        try:
            yield
        finally:
            self._set_weights(present)
            if len(self._past) > self.lag:
                self._past.popleft()

    def figures(self) -> dict[str, int]:
        """How many rollout batches old the weights are that sampled; nothing without a lag."""
        return {"behaviour_lag": self.age} if self.lag else {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"age": self.age, "past": list(self._past)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.age, self._past = state["age"], deque(state["past"])

    def _weights(self) -> list[torch.nn.Parameter]:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        return [weight for weight in model.parameters() if weight.requires_grad]

    @torch.no_grad()
    def _set_weights(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights(), values, strict=True):
            weight.copy_(value)
