"""Weights through Ray's object store, with a real Ray. Needs verl."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transfer_queue") is None,
    reason="verl is not installed (pip install -r tests/adapters/requirements-verl.txt)",
)
LATE = """
import asyncio, ray, torch
import verl
from ctpo.engines.verl.shipping import RayCheckpointEngine

async def ship():
    sender, receiver = RayCheckpointEngine(1, is_master=True), RayCheckpointEngine(1)
    for version in (1, 2):
        sender.prepare()
        receiver.prepare()
        await sender.send_weights([("bias", torch.full((2,), float(version)))], version)
        await asyncio.sleep(1)
        print({name: tensor.tolist() async for name, tensor in receiver.receive_weights(version)}, flush=True)
        sender.finalize()
        receiver.finalize()

ray.init(num_cpus=1, include_dashboard=False)
asyncio.run(asyncio.wait_for(ship(), 60))
"""


def test_a_receiver_that_asks_late_gets_the_weights(environment: dict[str, str]) -> None:
    """Ray ends a named actor with the handle that made it, so the sender must keep its own."""
    needed = {"VERL_USE_EXTERNAL_MODULES": "ctpo.engines.verl.plugin", "VERL_PLATFORM": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", LATE],
        env={**environment, **needed},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "{'bias': [1.0, 1.0]}\n{'bias': [2.0, 2.0]}" in done.stdout
