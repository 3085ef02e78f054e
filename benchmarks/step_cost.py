"""What a step costs: CPU-seconds per phase, the products that it needs, and how fast this machine multiplies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch


def figures_of(words: Sequence[str], side: str) -> dict[str, float]:
    """The figures that a Python program prints behind RESULT, in a process of its own; exits with its error if none."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        killed = (
            f" (killed by signal {-done.returncode}; 9 mostly means out of memory)"
            if done.returncode < 0
            else ""
        )
        sys.exit(f"{side} failed{killed}:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(results[-1].removeprefix("RESULT "))
    return figures


def clock(trainer: Any) -> dict[str, float]:
    """CPU-seconds of the step and its phases, filled in while the trainer trains."""
    from transformers import TrainerCallback

    spent = dict.fromkeys(("step", "generation", "optimizer"), 0.0)
    began: dict[str, float] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            began["step"] = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            spent["step"] += time.process_time() - began["step"]

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            began["optimizer"] = time.process_time()

        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            spent["optimizer"] += time.process_time() - began["optimizer"]

    generate = trainer._generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return generate(*args, **kwargs)
        finally:
            spent["generation"] += time.process_time() - started

    trainer._generate = timed
    trainer.add_callback(Clock())
    return spent


def product_flops(trainer: Any) -> float:
    """Floating point operations of the products with weights in forward and backward, without attention's own.

    Only tokens that must be computed count: those of rows with an advantage, prompts once, and completions without
    their last token. The head counts for every completion token.
    """
    from ctpo.training.scoring.microbatch import MicroBatch

    head = trainer.model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in trainer.model.parameters()) - head
    total = 0.0
    for part in trainer._buffered_inputs:
        rows = MicroBatch.of(part).rows.take(part["advantages"].nonzero()[:, 0])
        groups, prompts, reach = rows.groups(), rows.prompt_lengths(), rows.reach()
        once = sum(int(prompts[groups == group][0]) for group in groups.unique())
        total += 6 * (body * (once + int((reach - 1).sum())) + head * int(rows.wanted.sum()))
    return total


def peak_flops(dtype: torch.dtype) -> float:
    """Floating point operations per second of a 1024³ product, the best of ten."""
    left, right = torch.randn(2, 1024, 1024).to(dtype).unbind()
    seconds = []
    for _ in range(10):
        started = time.process_time()
        left @ right
        seconds.append(time.process_time() - started)
    return 2 * 1024**3 / min(seconds)
