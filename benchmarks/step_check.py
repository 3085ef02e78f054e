"""How far the loss and gradient with each setting are from TRL's plain pass, and how far both are from float64."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from step_sides import LEVERS, make_trainer, response_lengths, texts
from torch import Tensor

from ctpo.objectives import preset

_OBJECTIVES = ("grpo", "ctpo")
_PLAIN = {**LEVERS["all"], "max_tokens_per_micro_batch": 0}
_SETTINGS: dict[str, dict[str, Any]] = {
    "plain": _PLAIN,
    "all on": {},
    **{
        f"without {name}": off
        for name, off in LEVERS.items()
        if name not in ("all", "checkpointing", "compute_dtype", "keep_freed_memory")
    },
}


def check(model: str) -> dict[str, dict[str, dict[str, float]]]:
    """Relative differences on a ragged micro-batch in float32, by objective and setting.

    An objective of single tokens (grpo) sees the rounding of a token once. CTPO multiplies the ratios of a row and
    gathers the rounding of up to 64 log-probs, in either pass. The comparison with float64 shows how much of the
    difference comes from which pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer("ctpo-compute_dtype", "ragged", folder, model=model)
        trainer.current_gradient_accumulation_steps = 1
        inputs = _micro_batch(trainer)
        return {name: _differences(trainer, inputs, name) for name in _OBJECTIVES}


def _differences(trainer: Any, inputs: dict[str, Any], objective: str) -> dict[str, dict[str, float]]:
    trainer.objective = preset(objective)
    with _in_float64(trainer.model):
        exact = _loss_and_gradient(trainer, inputs, _PLAIN)
    differences: dict[str, dict[str, float]] = {}
    plain = exact
    for name, settings in _SETTINGS.items():
        got = _loss_and_gradient(trainer, inputs, settings)
        if name == "plain":
            plain = got
        differences[name] = {**_apart(got, plain, "plain"), **_apart(got, exact, "float64")}
    return differences


def _apart(got: tuple[float, Tensor], expected: tuple[float, Tensor], name: str) -> dict[str, float]:
    return {
        f"loss from {name}": abs(got[0] / expected[0] - 1),
        f"gradient from {name}": float((got[1] - expected[1]).norm() / expected[1].norm()),
    }


def _loss_and_gradient(
    trainer: Any, inputs: dict[str, Any], settings: dict[str, Any]
) -> tuple[float, Tensor]:
    from ctpo.training.scoring.parts import PartScorer

    names = {key for levers in LEVERS.values() for key in levers}
    on: dict[str, Any] = dict.fromkeys(names, True)
    on |= {"activation_checkpointing": False, "compute_dtype": "float32", "max_tokens_per_micro_batch": 150}
    for key, value in {**on, **settings}.items():
        setattr(trainer.args, key, value)
    trainer.part_scorer = PartScorer(trainer)
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).double()
    return float(loss.detach()), gradient


@contextmanager
def _in_float64(model: Any) -> Iterator[None]:
    """A context with the whole model in float64. transformers' norms compute in float32 at any dtype, so they are
    replaced."""
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    model.double()
    for norm in norms:
        norm.forward = _norm_in_float64(norm)
    try:
        yield
    finally:
        model.float()
        for norm in norms:
            del norm.forward


def _norm_in_float64(norm: Any) -> Any:
    def forward(x: Tensor) -> Tensor:
        y: Tensor = norm.weight * (x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt())
        return y

    return forward


def _micro_batch(trainer: Any) -> dict[str, Any]:
    """Two prompts with two responses each, anchors away from the policy's log-probs, and one row without advantage."""
    draw = torch.Generator().manual_seed(2)
    tokens = [trainer.processing_class(text)["input_ids"] for text in texts()[:5:4]]
    width = max(map(len, tokens))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in tokens]).repeat_interleave(2, 0)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens]).repeat_interleave(2, 0)
    lengths = response_lengths("ragged")[:4]
    longest = int(lengths.max())
    completions = torch.randint(1000, 40000, (4, longest), generator=draw)
    completion_mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    inputs: dict[str, Any] = {
        "prompt_ids": ids,
        "prompt_mask": mask,
        "completion_ids": completions,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([1.0, -1.0, 0.0, 0.7]),
    }
    with torch.no_grad():
        trainer.model.eval()
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.cat([ids, completions], 1), torch.cat([mask, completion_mask], 1), longest
        )
    inputs["old_per_token_logps"] = logps + 0.02 * torch.randn(logps.shape, generator=draw)
    return inputs
