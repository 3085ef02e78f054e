"""The loop's arithmetic is the engine's. `test_blocks.py` runs the examples."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import torch

from ctpo.objectives import preset
from ctpo.rollout import ToolRunner, TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Task
from ctpo.tasks.arithmetic.task import TOOL

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_before_an_update_the_loop_scores_as_the_engine_sampled(
    embedded: Any, arithmetic: Task, sandbox: Any
) -> None:
    loop = runpy.run_path(str(EXAMPLES / "loop.py"))
    model, tokenizer = embedded
    prompts = [tokenizer.encode(problem.prompt) for problem in arithmetic.problems("train", 8, 0)]
    tools = ToolRunner(TOOL, sandbox)
    rollouts = TransformersEngine(model, tokenizer).generate(
        prompts, Sampling(max_new_tokens=96), partner=tools
    )
    assert any(0 in rollout.response_mask for rollout in rollouts)  # tool output, which the mask leaves out
    logps = loop["response_logps"](model, rollouts)
    old, mask = (
        loop["padded"]([torch.tensor(getattr(r, name)) for r in rollouts])
        for name in ("logps", "response_mask")
    )
    out = preset("ctpo")(logps, old, torch.ones(8), mask)
    assert max(abs(out.stats[f"log_ratio_{end}"].item()) for end in ("min", "max")) < 1e-4
