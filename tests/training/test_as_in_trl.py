"""What TRL's own loss knows beside clipping, and how it aggregates rewards: equal to stock TRL, figure by figure.

Both trainers take the same minibatches. Parameters are compared after four updates, three of them off-policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from beside_trl import GRPO_AS_IN_TRL, ONE_BATCH, PLAIN, assert_trained_alike, parameters, stock_trainer
from trl import GRPOTrainer

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.objectives import Gate, RolloutCorrection, Weight, correct_rollout, named_correction
from ctpo.objectives.named_corrections import as_in_trl
from ctpo.training.sampling.correction import correction_for
from ctpo.training.sampling.rollout_func import make_rollout_func
from ctpo.training.scoring.microbatch import MicroBatch

SETTINGS: dict[str, dict[str, Any]] = {
    "entropy bonus": {"entropy_coef": 0.05},
    "adaptive entropy of top-entropy tokens": {
        "use_adaptive_entropy": True,
        "entropy_coef": 0.05,
        "entropy_coef_delta": 0.02,
        "entropy_target": 0.9,
        "entropy_coef_max": 0.08,
        "top_entropy_quantile": 0.5,
    },
    "top-entropy tokens": {"top_entropy_quantile": 0.3},
    "off-policy mask and penalty": {"off_policy_mask_threshold": 0.002, "beta": 0.1},
}


def grpo(fit: Callable[..., Any], trainer_class: type = CTPOTrainer, **settings: Any) -> Any:
    """Our trainer with TRL's loss."""
    loss = {"objective": "grpo", "objective_kwargs": GRPO_AS_IN_TRL}
    return fit(trainer_class, CTPOConfig, **loss, **PLAIN, **ONE_BATCH, **settings)


@pytest.fixture(scope="module")
def unchanged(fit: Callable[..., Any]) -> Any:
    return stock_trainer(fit, **ONE_BATCH)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_trains_as_trl_does(fit: Callable[..., Any], unchanged: Any, name: str) -> None:
    settings = SETTINGS[name]
    ours = grpo(fit, **settings)
    theirs = stock_trainer(fit, **ONE_BATCH, **settings)
    assert_trained_alike(ours, theirs, unchanged)
    if "entropy_coef" in settings:
        assert ours.entropy_coef == pytest.approx(theirs.entropy_coef, abs=1e-12)
        logged, trls = (
            [line["entropy_coef"] for line in each.state.log_history[:2]] for each in (ours, theirs)
        )
        assert logged == pytest.approx(trls)
        assert "adaptive" not in name or len({0.05, *logged}) > 1


class Noisy:
    """A rollout engine whose log-probs differ from the trainer's: those of the model, scaled by a known factor."""

    def __init__(self, *args: Any, rollout_func: Any, **kwargs: Any) -> None:
        def noisy(prompts: list[str], trainer: Any) -> dict[str, Any]:
            vllm, trainer.use_vllm = trainer.use_vllm, False
            rollouts = rollout_func(prompts, trainer)
            trainer.use_vllm = vllm
            for ids, logps in zip(rollouts["completion_ids"], rollouts["logprobs"], strict=True):
                for t, token in enumerate(ids):
                    logps[t] *= 1 + 0.3 * math.sin(token + 3.0 * t)
            return rollouts

        super().__init__(*args, rollout_func=noisy, **kwargs)


class StockVLLM(Noisy, GRPOTrainer):
    """TRL's trainer that takes the noisy engine for its vLLM, and corrects it by its own means."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use_vllm = True
        self.vllm_generation = SimpleNamespace(sync_weights=lambda: None)
        self._last_loaded_step = -1


class OursOnEngine(Noisy, CTPOTrainer):
    pass


@pytest.fixture(scope="module")
def uncorrected(fit: Callable[..., Any]) -> Any:
    return grpo(fit, OursOnEngine, rollout_correction="none")


@pytest.mark.parametrize(
    ("mode", "low", "high", "ours"),
    [
        (
            "token_truncate",
            None,
            1.04,
            {"rollout_correction": "tis", "rollout_correction_kwargs": {"cap": 1.04}},
        ),
        (
            *("sequence_mask", 0.9, 1.1),
            {
                "rollout_correction": "custom",
                "rollout_correction_kwargs": {
                    "weight": {"level": "sum"},
                    "gates": [{"statistic": "ratio", "level": "sum", "low": 0.9, "high": 1.1}],
                },
            },
        ),
    ],
)
def test_an_engine_is_corrected_as_trl_corrects_vllm(
    fit: Callable[..., Any],
    uncorrected: Any,
    mode: str,
    low: float | None,
    high: float,
    ours: dict[str, Any],
) -> None:
    settings = {"mode": mode, "clip_min": low, "clip_max": high}
    corrected = {f"vllm_importance_sampling_{name}": v for name, v in settings.items()}
    theirs = stock_trainer(fit, StockVLLM, **ONE_BATCH, **corrected)
    mine = grpo(fit, OursOnEngine, **ours)
    assert_trained_alike(mine, theirs, uncorrected)
    # TRL's own settings say the same.
    named = named_correction(ours["rollout_correction"], **ours["rollout_correction_kwargs"])
    assert as_in_trl(mode, low, high) == named
    # Figures: TRL logs the ratios once per rollout batch.
    our_log, their_log = mine.state.log_history[0], theirs.state.log_history[0]
    name = "sampling/importance_sampling_ratio/mean"
    if "mask" not in mode:
        assert our_log[name] == pytest.approx(their_log[name], rel=1e-5)
        assert 0 < our_log["objective/correction_truncated_fraction"] < 1
    else:
        assert 0 < our_log["objective/correction_rejected_by_ratio_sum"] < 1


def test_the_recipe_is_on_where_another_engine_samples(fit: Callable[..., Any]) -> None:
    """And off where the model in training samples itself, or where the ratio is taken against the engine."""
    foreign = fit(OursOnEngine, CTPOConfig, **ONE_BATCH)
    assert foreign.rollout_correction == named_correction("recipe")
    inputs = MicroBatch.of(foreign._buffered_inputs[1])
    assert inputs.old_logps is not None
    assert inputs.rollout_logps is not None
    expected = correct_rollout(inputs.old_logps, inputs.rollout_logps, inputs.response_mask)
    assert inputs.rollout_weights is not None
    torch.testing.assert_close(inputs.rollout_weights, expected.weights)
    assert (expected.weights != 1).any()
    own = fit(CTPOTrainer, CTPOConfig, **ONE_BATCH)
    assert own.rollout_correction is None
    assert "objective/correction_ess" not in own.state.log_history[0]


def test_which_engines_are_corrected(tmp_path: Path) -> None:
    def engine(prompts: list[str], trainer: Any) -> dict[str, Any]:
        raise AssertionError("not called")

    def made(function: Any = engine, **settings: Any) -> Any:
        return correction_for(CTPOConfig(str(tmp_path), use_cpu=True, **settings), function)

    recipe = named_correction("recipe")
    assert made() == recipe
    assert made(rollout_correction_kwargs={"cap": 2.0}) == named_correction("recipe", cap=2.0)
    assert made(None) is made(make_rollout_func(None)) is made(anchor="rollout") is None
    assert made(None, rollout_correction="tis") == named_correction("tis")
    with pytest.raises(ValueError, match="rollout_correction_kwargs has no effect"):
        made(make_rollout_func(None), rollout_correction_kwargs={"cap": 2.0})
    assert made(anchor="rollout", rollout_correction="trm-max") == named_correction("trm-max")
    vllm = {"use_vllm": True, "function": make_rollout_func(None)}
    assert made(**vllm) == recipe
    assert made(**vllm, anchor="rollout") is made(**vllm, vllm_importance_sampling_correction=False) is None
    in_trls_words = made(
        **vllm, vllm_importance_sampling_mode="token_mask", vllm_importance_sampling_clip_min=0.5
    )
    assert in_trls_words == RolloutCorrection(weight=Weight("token"), gates=(Gate(low=0.5, high=3.0),))
    for settings in ({}, {"anchor": "rollout"}, {"rollout_correction": "tis"}):
        with pytest.raises(
            ValueError, match=r"top_p=0.9: the rollout engine reports log-probs of the tokens"
        ):
            made(top_p=0.9, **settings)
    # In-process sampling reports log-probs of the whole distribution, so nothing accumulates.
    assert made(make_rollout_func(None), top_p=0.9) is made(top_p=0.9, rollout_correction="none") is None


def test_rejected_tokens_leave_the_denominators_exactly(fit: Callable[..., Any]) -> None:
    """Two micro-batches of four rows are one minibatch of eight, also if half of the tokens are thrown out. With one
    update per rollout batch TRL scores no old log-probs, so the trainer does."""
    gates = {"rollout_correction": "icepop", "rollout_correction_kwargs": {"low": 0.99, "high": 1.01}}
    gates["rollout_correction_kwargs"]["denominator"] = "kept"
    one = {"generation_batch_size": 8, **PLAIN, "max_steps": 1, "logging_steps": 1}
    whole = fit(OursOnEngine, CTPOConfig, **gates, **one)
    halves = fit(
        OursOnEngine, CTPOConfig, **gates, **one, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    torch.testing.assert_close(parameters(whole), parameters(halves), atol=2e-5, rtol=0)
    # Adam's first step does not see the scale of a gradient, so compare that too.
    norm = whole.state.log_history[0]["grad_norm"]
    assert halves.state.log_history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    batch = MicroBatch.of(whole._buffered_inputs[0])
    assert batch.num_tokens == batch.counted.sum() < batch.response_mask.sum()
    gates["rollout_correction_kwargs"]["denominator"] = "all"
    stay = fit(OursOnEngine, CTPOConfig, **gates, **one)
    share = batch.counted.sum() / batch.response_mask.sum()
    reduced = stay.state.log_history[0]["grad_norm"]
    assert reduced == pytest.approx(norm * share.item(), rel=1e-4)


def test_a_resumed_run_has_the_same_weights_and_coefficient(fit: Callable[..., Any]) -> None:
    """In the middle of a rollout batch, whose weights and rejected tokens are in the checkpoint."""
    settings = {
        **SETTINGS["adaptive entropy of top-entropy tokens"],
        "rollout_correction": "icepop",
        "rollout_correction_kwargs": {"low": 0.9, "high": 1.1, "denominator": "kept"},
        **ONE_BATCH,
    }
    whole = fit(OursOnEngine, CTPOConfig, save_strategy="steps", save_steps=2, **settings)
    checkpoint = Path(whole.args.output_dir) / "checkpoint-2"
    assert "entropy_coef" in (checkpoint / "entropy_ctrl_state.json").read_text()
    resumed = fit(OursOnEngine, CTPOConfig, resume=str(checkpoint), **settings)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert resumed.entropy_coef == whole.entropy_coef
    assert resumed._last_world_entropy == whole._last_world_entropy
