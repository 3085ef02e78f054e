"""The policy that samples: the one that learns, or, with `behaviour_lag`, that of some rollout batches ago.

In asynchronous training responses come from weights that the learner has left behind. `behaviour_lag=k` makes that
lag exact and repeatable in one process: rollout batch n (from 1) is sampled by the weights after batch n − k − 1, the
initial ones as long as there are none so old. Only what is trained is copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Behaviour:
    """Keeps the weights of the last `lag` rollout batches, and puts the oldest into the model while it samples.

    Every process keeps its own copies. A lag of 0 keeps and does nothing.

    Raises:
        ValueError: if there is a lag and the weights are sharded over processes.
    """

    def __init__(self, trainer: Any, lag: int) -> None:
        if lag and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise ValueError(
                f"behaviour_lag={lag} needs whole weights in every process; it cannot be had with FSDP or DeepSpeed"
            )
        self.lag = lag
        self.age = 0
        """Rollout batches between the weights that sampled the batch in use and those that first learned from it."""
        self._trainer = trainer
        self._past: deque[list[Tensor]] = deque()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """The model as it was `lag` rollout batches ago; afterwards the present one again, bit for bit."""
        if not self.lag:
            yield
            return
        present = [weight.detach().clone() for weight in self._weights()]
        self._past.append(present)
        self.age = len(self._past) - 1
        self._put(self._past[0])
        try:
            yield
        finally:
            self._put(present)
            if len(self._past) > self.lag:
                self._past.popleft()

    def figures(self) -> dict[str, int]:
        """How old the weights were that sampled the batch in use; nothing without a lag."""
        return {"behaviour_lag": self.age} if self.lag else {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"age": self.age, "past": list(self._past)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.age, self._past = state["age"], deque(state["past"])

    def _weights(self) -> list[torch.nn.Parameter]:
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        return [weight for weight in model.parameters() if weight.requires_grad]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights(), values, strict=True):
            weight.copy_(value)
