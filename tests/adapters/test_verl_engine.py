"""verl's FSDP2 engine on two gloo processes: a `train_batch` with our loss has the gradient of the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.objectives import preset

from . import verl_engine_worker as worker

pytest.importorskip(
    "verl", reason="verl is not installed (pip install -r tests/adapters/requirements-verl.txt)"
)
WORLD = 2


def expected_grad_norm(path: str) -> float:
    """The same model and rows in one process: forward row by row, the objective over all rows at once."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    rows = [row for rank in range(WORLD) for row in worker.batch(rank)]
    logps = []
    for row in rows:
        tokens = torch.cat([row["prompts"], row["responses"]])
        scores = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        logps.append(scores.gather(-1, tokens[1:, None])[len(row["prompts"]) - 1 :, 0])
    packed = {
        name: torch.cat([row[name] for row in rows])
        for name in ("old_log_probs", "advantages", "response_mask")
    }
    lengths = torch.tensor([0, *(len(each) for each in logps)]).cumsum(0)
    out = preset("ctpo")(
        torch.cat(logps),
        packed["old_log_probs"],
        packed["advantages"],
        packed["response_mask"],
        cu_seqlens=lengths,
    )
    assert 0 < out.stats["clip_fraction"] + out.stats["clip_fraction_dual"] < 1
    out.loss.backward()
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


def test_train_batch(tmp_path: Path) -> None:
    path = worker.model_folder(tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "VERL_PLATFORM": "cpu",
    }
    processes: list[Any] = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(rank), str(WORLD), str(tmp_path), path],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[0] for process in processes]
    finally:  # a rank that fails leaves the other waiting for it
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(said)[-4000:]
    told = json.loads((tmp_path / "engine.json").read_text())
    assert told["moved"] == told["of"] > 0
    seen = [json.loads((tmp_path / f"ratios-{rank}.json").read_text()) for rank in range(WORLD)]
    rows = [row for rank in range(WORLD) for row in worker.batch(rank)]
    assert sum(each["tokens"] for each in seen) == sum(int(row["response_mask"].sum()) for row in rows)
    assert all(each["log_ratio"] != 0 for each in seen)
    assert told["metrics"]["grad_norm"] == pytest.approx(expected_grad_norm(path), rel=1e-5)
