"""Whether batch, group and process counts fit together; where not, which number to change to what."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctpo.training.config.config import CTPOConfig


def check_batches(config: CTPOConfig) -> None:
    """Refuse counts that do not divide, before TRL does without saying what would.

    A rollout batch is a whole number of groups (samples of one prompt), and each process takes the same number of
    micro-batches of it.

    Raises:
        ValueError: naming one number and what to set it to.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch, group, rows = (
        config.generation_batch_size,
        config.num_generations,
        config.per_device_train_batch_size,
    )
    for name, value, least, why in (
        ("num_generations", group, 2, "an advantage compares samples of one prompt"),
        ("per_device_train_batch_size", rows, 1, "a micro-batch has rows"),
        ("generation_batch_size", batch, 1, "a rollout batch has responses"),
        ("steps_per_generation", config.steps_per_generation, 1, "a rollout batch has micro-batches"),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} is too small; use at least {least} ({why})")
    if batch is None:
        _check_product(config, processes)
    elif batch % group:
        other = _nearest_divisor(batch, group)
        raise ValueError(
            f"generation_batch_size={batch} does not hold whole groups of num_generations={group} samples; use "
            f"generation_batch_size={_nearest_multiple(batch, math.lcm(group, rows * processes))}"
            + (f", or num_generations={other}" if other else "")
        )
    elif batch % (rows * processes):
        raise ValueError(_uneven(batch, group, rows, processes))


def _uneven(batch: int, group: int, rows: int, processes: int) -> str:
    among = f" on each of {processes} processes" if processes > 1 else ""
    head = (
        f"generation_batch_size={batch} does not split into micro-batches of per_device_train_batch_size={rows}"
        f"{among}"
    )
    if batch % processes:
        return (
            f"{head}; use generation_batch_size={_nearest_multiple(batch, math.lcm(group, rows * processes))}"
        )
    return f"{head}; use per_device_train_batch_size={_largest_divisor(batch // processes, rows)}"


def _check_product(config: CTPOConfig, processes: int) -> None:
    """The rollout batch is what the micro-batches add up to."""
    name = "gradient_accumulation_steps" if config.steps_per_generation is None else "steps_per_generation"
    steps, rows, group = getattr(config, name), config.per_device_train_batch_size, config.num_generations
    if steps * rows * processes % group:
        raise ValueError(
            f"{name}={steps} x per_device_train_batch_size={rows} x {processes} processes = {steps * rows * processes} "
            f"responses do not hold whole groups of num_generations={group} samples; use "
            f"{name}={_nearest_multiple(steps, group // math.gcd(group, rows * processes))}"
        )


def _nearest_multiple(value: int, of: int) -> int:
    return max(1, round(value / of)) * of


def _largest_divisor(number: int, at_most: int) -> int:
    return next(d for d in range(min(at_most, number), 0, -1) if number % d == 0)


def _nearest_divisor(number: int, to: int) -> int | None:
    """The divisor of at least 2 that lies nearest."""
    found = [d for d in range(2, min(number, 2 * to) + 1) if number % d == 0]
    return min(found, key=lambda d: abs(d - to)) if found else None
