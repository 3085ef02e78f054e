"""What the pages and the docstrings take as given."""

from __future__ import annotations

from typing import Any

import torch


def names() -> dict[str, Any]:
    """What the pages take as given: the tensors of a loop, and the names that they have just explained."""
    import trl

    import ctpo.objectives as objectives
    from ctpo import CTPOConfig

    torch.manual_seed(0)
    logps = (-0.1 - torch.rand(4, 9)).requires_grad_()
    old_logps = logps.detach() - 0.05 * torch.rand(4, 9)
    tensors = {
        "logps": logps,
        "old_logps": old_logps,
        "rollout_logps": old_logps - 0.01,
        "ref_logps": old_logps,
        "advantages": torch.randn(4),
        "response_mask": torch.ones(4, 9, dtype=torch.bool),
        "beta": 0.01,
    }
    explained = {name: getattr(objectives, name) for name in objectives.__all__}
    config = trl.GRPOConfig("out", loss_type="dapo", use_cpu=True, bf16=False)
    given = {"objective": objectives.preset("ctpo"), "CTPOConfig": CTPOConfig, "config": config}
    return {**explained, **tensors, **given}
