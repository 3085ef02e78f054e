"""A linear value function that is solved for, not trained: ridge regression that forgets."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

_RIDGE: Final = 1e-3
"""The penalty of a weight, as a share of its feature's mean square."""
_FLOOR: Final = 1e-9
"""The least penalty, as a share of the largest feature's mean square, for features that never vary from 0."""


class LeastSquares:
    """Weights w that minimise Σ_k β^{K−k} Σ_i (y_i − wᵀx_i)² + penalty over the minibatches k = 1 … K seen so far.

    The sums of x xᵀ and x y are all that is kept. Every process has the sums of all processes.

    Args:
        forget: β from 0 to 1.
    """

    def __init__(self, forget: float) -> None:
        self._forget = forget
        self._squares: Tensor | None = None
        self._products: Tensor | None = None
        self.weights: Tensor | None = None
        """[K]"""

    def start(self, width: int, constant: Tensor) -> None:
        """Let the values be a constant, the weight of the first feature, until something is learned."""
        self.weights = torch.zeros(width, dtype=constant.dtype, device=constant.device)
        self.weights[0] = constant

    def values(self, features: Tensor) -> Tensor:
        """[…] the values of features […, K]."""
        assert self.weights is not None
        return features.to(self.weights) @ self.weights

    def learn(self, features: Tensor, targets: Tensor, accelerator: Any) -> bool:
        """Take a minibatch, and solve. Every process must call. False if the sums are not finite, and then left out.

        Args:
            features: [M, K] of this process.
            targets: [M].
            accelerator: adds up over processes.
        """
        assert self.weights is not None
        x, y = features.to(self.weights), targets.to(self.weights)
        sums = accelerator.reduce(torch.cat([x.T @ x, (x.T @ y).unsqueeze(1)], dim=1), reduction="sum")
        if not bool(sums.isfinite().all()):
            return False
        if self._squares is None or self._products is None:
            self._squares, self._products = torch.zeros_like(sums[:, :-1]), torch.zeros_like(sums[:, -1])
        self._squares = self._forget * self._squares + sums[:, :-1]
        self._products = self._forget * self._products + sums[:, -1]
        diagonal = self._squares.diagonal()
        if diagonal.max() > 0:
            penalty = _RIDGE * diagonal + _FLOOR * diagonal.max()
            penalty[0] = _FLOOR * diagonal.max()  # the mean is not drawn to 0
            self.weights = torch.linalg.solve(self._squares + penalty.diag(), self._products)
        return True

    def state_dict(self) -> dict[str, Tensor | None]:
        """What a resumed run needs."""
        return {"squares": self._squares, "products": self._products, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Continue from what `state_dict` returned."""
        self._squares, self._products, self.weights = state["squares"], state["products"], state["weights"]
