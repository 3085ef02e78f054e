"""Small typed stand-ins for the trainers' hand-overs, where the trainer itself is not installed.

Each module defines, under the trainer's own names and types, the functions and fields an adapter touches;
`test_standins.py` compares them with `recorded/`, field by field. They are written from the trainers' documented
behaviour, not from their code.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

MODULES: dict[str, dict[str, str]] = {
    "verl": {
        "verl.trainer.ppo.core_algos": "verl",
        "verl.trainer.ppo.rollout_corr_helper": "verl",
        "verl.workers.config": "verl",
    },
    "prime_rl": {"prime_rl.trainer.rl.loss": "prime_rl"},
    "skyrl": {"skyrl.backends.skyrl_train.utils.ppo_utils": "skyrl", "skyrl.train.config": "skyrl"},
    "slime": {
        "megatron.core.mpu": "megatron",
        "slime.backends.megatron_utils.cp_utils": "slime",
        "slime.backends.megatron_utils.loss": "slime",
    },
    "miles": {
        "miles.backends.training_utils.parallel": "miles",
        "miles.backends.training_utils.cp_utils": "miles",
        "miles.backends.training_utils.loss_hub.logit_processors": "miles",
    },
    "tinker": {"tinker": "tinker"},
    "nemo_rl": {"nemo_rl.algorithms.loss.interfaces": "nemo_rl"},
    "openrlhf": {"openrlhf.models": "openrlhf"},
    "roll": {
        "roll.pipeline.rlvr.actor_worker": "roll",
        "roll.pipeline.agentic.agentic_actor_worker": "roll",
        "roll.utils.functionals": "roll",
    },
    "areal": {
        "areal.engine": "areal_engine",
        **dict.fromkeys(("areal.engine.fsdp_engine", "areal.engine.megatron_engine"), "areal"),
        **dict.fromkeys(("areal.trainer.ppo.actor", "areal.utils"), "areal"),
    },
    "ms_swift": {"swift.rlhf_trainers": "ms_swift", "swift.trainers": "ms_swift"},
    "trl_async": {"trl.experimental.async_grpo.async_grpo_trainer": "none: TRL is always installed here"},
}
"""Modules an adapter asks for, and the stand-in that answers."""


def present(trainer: str) -> bool:
    """Whether the real trainer can be imported, all the modules of it that its adapter asks for."""
    try:
        for module in MODULES[trainer]:
            importlib.import_module(module)
    except Exception:  # a checkout on the path may lack any of its own dependencies
        return False
    return True


def provide(trainer: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The trainer's modules: its own where they can be imported, else stand-ins for the time of the test."""
    if not present(trainer):
        for module, standin in MODULES[trainer].items():
            monkeypatch.setitem(sys.modules, module, importlib.import_module(f"{__name__}.{standin}"))
        monkeypatch.delitem(sys.modules, f"ctpo.adapters.{trainer}", raising=False)
    return {module: importlib.import_module(module) for module in MODULES[trainer]}


def log_softmax_of(logits: Any, tokens: Any) -> Any:
    """Log-probs [T] of tokens [T] under logits [T, V]."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
