"""The randomness of responses: a row's numbers are its own, whatever rows are decoded beside it.

A generator shared by a batch gives a row other numbers as soon as another row is added, ends, or sits in another
process. Here a number depends only on the seed, the stream, the row and the position, so that the same responses
are drawn by one process or many, and however many rows are decoded at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def row_uniforms(rows: Iterable[int], columns: int, *, seed: int, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), one a row and position.

    Philox is counter-based: the key is (seed, stream), the counter starts at the row, so rows never overlap.

    Args:
        rows: indices in the batch as a whole, over all processes; any non-negative integers.
        columns: positions, the length of the longest response.
        seed, stream: non-negative; a run's seed and, for example, the number of the rollout batch.

    Returns:
        [rows, columns] float32, on the CPU.
    """
    table = [_row(row, columns, seed, stream) for row in rows]
    return torch.from_numpy(np.stack(table)) if table else torch.empty(0, columns)


def _row(row: int, columns: int, seed: int, stream: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    philox = np.random.Philox(key=[seed, stream], counter=[0, 0, row, 0])
    return np.random.Generator(philox).random(columns, dtype=np.float32)
