"""Batch sizes that do not divide each other: the value that the error proposes does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ctpo import CTPOConfig


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"generation_batch_size": 500},
        {"generation_batch_size": 96, "num_generations": 5},
        {"num_generations": 7, "generation_batch_size": 512},
        {"per_device_train_batch_size": 24, "generation_batch_size": 512},
        {"per_device_train_batch_size": 1024, "generation_batch_size": 512},
        {"generation_batch_size": 513},
        {"per_device_train_batch_size": 5, "steps_per_generation": 3},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5},
    ],
)
def test_what_is_proposed_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], processes: int
) -> None:
    """Each error names a setting and a value. Following the advice, repeatedly if need be, leads to valid settings."""
    from ctpo.training.config.checks import check_batches

    monkeypatch.setenv("WORLD_SIZE", str(processes))
    keys = {"num_generations": 8, "per_device_train_batch_size": 32, "steps_per_generation": None}
    keys |= {"generation_batch_size": None, "gradient_accumulation_steps": 1, **settings}
    refused = 0
    for _ in range(3):
        try:
            check_batches(type("Config", (), keys)())  # type: ignore[arg-type]
            break
        except ValueError as error:
            refused += 1
            name, value = re.findall(r"^[^\n]+; use (\w+)=(\d+)", str(error))[0]
            keys[name] = int(value)
    else:
        pytest.fail(f"no end of advice: {keys}")
    assert refused
    total = keys["generation_batch_size"] or (
        keys["per_device_train_batch_size"]
        * processes
        * (keys["steps_per_generation"] or keys["gradient_accumulation_steps"])
    )
    assert total % keys["num_generations"] == 0
    assert total % (keys["per_device_train_batch_size"] * processes) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "num_generations=1 is too small; use at least 2"),
        ({"num_generations": 0}, "num_generations=0 is too small; use at least 2"),
        ({"generation_batch_size": 0}, "generation_batch_size=0 is too small"),
        ({"steps_per_generation": -1}, "steps_per_generation=-1 is too small"),
        (
            {"generation_batch_size": 512, "num_generations": 7, "per_device_train_batch_size": 32},
            "groups of num_generations=7 samples; use generation_batch_size=448, or num_generations=8",
        ),
        (
            {"generation_batch_size": 512, "per_device_train_batch_size": 24},
            "per_device_train_batch_size=24; use per_device_train_batch_size=16",
        ),
    ],
)
def test_the_config_says_it(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CTPOConfig(str(tmp_path), use_cpu=True, **settings)
