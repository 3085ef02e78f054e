"""Random numbers for sampling that do not depend on how responses are batched.

If the rows of a batch share one generator, a row gets other numbers as soon as another row is added, ends, or moves
to another process. Here a number depends on the seed, the stream, the row and the position alone. So one process or
several, and small or large batches, draw the same responses.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def row_uniforms(rows: Iterable[int], columns: int, *, seed: int, stream: int = 0) -> Tensor:
    """Uniform random numbers in [0, 1), one for each row and position.

    They come from Philox, a counter-based generator. Its key is (seed, stream) and its counter starts at the row, so
    the numbers of two rows never overlap.

    Args:
        rows: the rows' indices in the whole batch, over all processes; any non-negative integers.
        columns: how many positions, the length of the longest response.
        seed: a non-negative integer, for example the run's seed.
        stream: a non-negative integer, for example the number of the rollout batch.

    Returns:
        [rows, columns] in float32, on the CPU.

    Example:
        uniforms = row_uniforms(range(8), sampling.max_new_tokens, seed=0)
        rollouts = engine.generate(prompts, sampling, uniforms=uniforms)  # of 8 prompts
    """
    table = [_row(row, columns, seed, stream) for row in rows]
    return torch.from_numpy(np.stack(table)) if table else torch.empty(0, columns)


def _row(row: int, columns: int, seed: int, stream: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    philox = np.random.Philox(key=[seed, stream], counter=[0, 0, row, 0])
    return np.random.Generator(philox).random(columns, dtype=np.float32)
