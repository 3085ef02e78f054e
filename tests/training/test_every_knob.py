"""Every knob of every preset trains: one tiny model, one rollout batch, one step for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.objectives import preset, preset_defaults, preset_names
from ctpo.training.config.recipe import embedded_recipe, merge
from ctpo.training.config.settings import check

OTHER: dict[str, Any] = {
    "reduction": "seq-mean-token-sum-norm",
    "norm_length": 40.0,
    "on_bad": "raise",
    "backend": "compose",
    "level": "sequence",
    "ema": 0.5,
    "length": 50,
    "decay": 0.9,
    "surrogate": "stop-gradient",
    "w_min": 0.5,
    "q": 0.4,
    "share": 0.2,
    "ratio_dual": 4.0,
    "log_dual": 0.3,
}
"""Another value for knobs that are no plain numbers, or whose range is narrow."""


def other(name: str, value: Any) -> Any:
    """A value that differs from a knob's default."""
    if name in OTHER:
        return OTHER[name]
    return not value if isinstance(value, bool) else value * 1.5 + 0.01


@pytest.fixture(scope="module")
def trainer(fit: Callable[..., Any]) -> Any:
    """A trainer after one of the updates on its rollout batch, so that ratios are not 1."""
    return fit(
        CTPOTrainer, CTPOConfig, max_steps=1, logging_steps=1, objective="reinforce", learning_rate=1e-2
    )


@pytest.mark.parametrize("name", preset_names())
def test_every_knob_trains(name: str, trainer: Any, tmp_path: Any) -> None:
    """Each knob alone has a loss and a gradient that are finite, and that are not 0."""
    inputs = {**trainer._buffered_inputs[1], **trainer.denominators.of(trainer._buffered_inputs, 1)}
    defaults = preset_defaults(name)
    knobs = [{}, *({knob: other(knob, value)} for knob, value in defaults.items())]
    for changed in knobs:
        if "across_ranks" in changed:
            continue  # it needs a process group; tests/objectives/test_sharding.py has one
        recipe = {"objective": name, "objective_kwargs": changed, "output_dir": str(tmp_path)}
        _, settings = check(merge(embedded_recipe(), recipe))
        trainer.objective = preset(settings["objective"], **settings["objective_kwargs"])
        trainer.model.zero_grad()
        trainer.model.train()
        loss = trainer._compute_loss(trainer.model, dict(inputs))
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
        assert loss.isfinite(), changed
        assert norm.isfinite(), changed
        assert norm > 0, changed
        trainer.diagnostics.close()
    figures = trainer.diagnostics.line if trainer.diagnostics.figures() else None
    assert figures is not None


def test_what_the_c_pass_does_not_know_is_refused_before_a_model_loads(tmp_path: Any) -> None:
    with pytest.raises(
        ValueError, match='backend: "native" cannot run this objective: it does not know SoftGate'
    ):
        CTPOConfig(str(tmp_path), objective="sapo", objective_kwargs={"backend": "native"}, use_cpu=True)
