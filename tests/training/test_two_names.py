"""A script of TRL's with `CTPOConfig` and `CTPOTrainer` for its two names: the same loss, said in one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.errors import UserError
from ctpo.objectives.named_corrections import as_in_trl
from ctpo.training.config.from_trl import LOSS_SETTINGS, LossSettingsNotice, translate
from ctpo.training.config.older import OLDER_KEYS, OlderKeyWarning
from ctpo.training.config.recipe import embedded_recipe, merge
from ctpo.training.config.settings import build, resolved
from ctpo.training.config.sources import trl_fields

sys.path.insert(0, str(Path(__file__).parent))
from test_trainer import PLAIN

TRL_DEFAULTS = {name: each.default for name, each in trl_fields().items()}
PAIR = {"epsilon": 0.004, "epsilon_high": 0.002}
SEQUENCE = {"importance_sampling_level": "sequence"}
LOSSES: dict[str, tuple[dict[str, Any], str]] = {
    "grpo": ({"loss_type": "grpo"}, "grpo"),
    "dapo": ({"loss_type": "dapo", **PAIR}, "dapo"),
    "only bounds": (PAIR, "dapo"),
    "bnpo": ({"loss_type": "bnpo", **PAIR}, "dapo"),
    "dr_grpo": ({"loss_type": "dr_grpo", "epsilon": 0.003}, "dr-grpo"),
    "luspo of tokens": ({"loss_type": "luspo", **PAIR}, "grpo"),
    "delta": ({"loss_type": "grpo", **PAIR, "delta": 1.006}, "grpo"),
    "delta inside of the band": ({"loss_type": "dapo", "epsilon": 0.006, "delta": 1.003}, "dapo"),
    "gspo": ({"loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4, **SEQUENCE}, "gspo"),
    "gspo, token mean": ({"epsilon": 3e-4, "delta": 1.001, **SEQUENCE}, "gspo"),
    "gspo, bnpo": ({"loss_type": "bnpo", "epsilon": 3e-4, **SEQUENCE}, "gspo"),
    "gspo, dr_grpo": ({"loss_type": "dr_grpo", "epsilon": 3e-4, **SEQUENCE}, "gspo"),
    "luspo": ({"loss_type": "luspo", "epsilon": 2e-3, "epsilon_high": 2.5e-3, **SEQUENCE}, "lusp"),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.001}, "cispo"),
    "sapo": ({"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 4.0}, "sapo"),
    "vespo": ({"loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_neg": 2.5}, "vespo"),
}
"""Settings of TRL's loss, and the preset that each is read as. Bounds are narrow, so that a few updates clip."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[CTPOConfig, GRPOConfig]]:
    """The configurations of LOSSES, ours and TRL's. Making one resets accelerate, so all are made before a trainer."""
    path, made = str(tmp_path_factory.mktemp("configs")), {}
    for name, (settings, preset) in LOSSES.items():
        with pytest.warns(LossSettingsNotice) as notices:
            ours = CTPOConfig(path, use_cpu=True, max_completion_length=80, **settings)
        assert len(notices) == 1
        assert f"of GRPOConfig: objective={preset!r}" in str(notices[0].message)
        assert notices[0].filename == __file__
        assert ours.objective == preset
        made[name] = ours, GRPOConfig(path, use_cpu=True, **settings)
    return made


@pytest.fixture(scope="module")
def drifted(configs: Any, fit: Callable[..., Any]) -> Any:
    """A trainer in the middle of a rollout batch, whose ratios are not 1, with two responses that are masked, as
    `mask_truncated_completions` does it."""
    trainer = fit(
        CTPOTrainer,
        CTPOConfig,
        max_steps=5,
        num_iterations=2,
        learning_rate=1e-3,
        beta=0.1,
        objective="reinforce",
        **PLAIN,
    )
    parts, trainer.denominators._counted = trainer._buffered_inputs, None
    for part in parts[1:3]:
        part["completion_mask"][0] = 0
    total = sum((part["completion_mask"] * part["tool_mask"]).sum() for part in parts)
    for part in parts:
        part["num_items_in_batch"] = total
    return trainer


def gradient(loss: Any, trainer: Any) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("name", "accumulation"), [*((name, 2) for name in LOSSES), ("dapo", 1), ("bnpo", 1)]
)
def test_the_loss_is_trls(
    name: str, accumulation: int, configs: Any, drifted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient of both code paths on the same responses: two micro-batches that hold a masked response, with
    the penalty of beta."""
    ours, trls = configs[name]
    trainer = drifted
    monkeypatch.setattr(trainer, "objective", ours.build_objective())
    monkeypatch.setattr(trainer.args, "denominators", ours.denominators)
    high = trls.epsilon if trls.epsilon_high is None else trls.epsilon_high
    for attribute, value in {
        "epsilon_low": trls.epsilon,
        "epsilon_high": high,
    }.items():  # as TRL's __init__ does
        monkeypatch.setattr(trainer, attribute, value)
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", accumulation)
    for attribute in ("loss_type", "importance_sampling_level"):
        monkeypatch.setattr(trainer, attribute, getattr(trls, attribute))
    for attribute in LOSS_SETTINGS:
        monkeypatch.setattr(trainer.args, attribute, getattr(trls, attribute))
    trainer.model.train()
    clipped = 0.0
    for i in (1, 2):
        inputs = trainer._buffered_inputs[i]
        monkeypatch.setattr(trainer, "_step", i)
        expected = GRPOTrainer._compute_loss(trainer, trainer.model, dict(inputs))
        wanted = gradient(expected, trainer)
        loss = trainer._compute_loss(
            trainer.model, {**inputs, **trainer.denominators.of(trainer._buffered_inputs, i)}
        )
        torch.testing.assert_close(loss, expected, atol=1e-7, rtol=1e-5)
        torch.testing.assert_close(
            gradient(loss, trainer), wanted, atol=1e-6 * wanted.abs().max().item(), rtol=1e-4
        )
        stats = trainer.objective_stats["train"].state_dict()
        clipped += float(stats["clip_fraction"][-1] + stats["clip_fraction_dual"][-1])
    assert (clipped > 0) == (ours.objective not in ("sapo", "vespo"))


def test_other_responses_than_trl_counts_have_other_denominators(drifted: Any) -> None:
    """The default counts what is in the loss. It is not what TRL's losses divide by, so the test above can fail."""
    rows = [part["completion_mask"].any(dim=1) for part in drifted._buffered_inputs]
    assert not torch.stack(rows).all()
    assert len({int(part["completion_mask"].sum()) for part in drifted._buffered_inputs}) > 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss_type": "cispo"}, ["epsilon_high=0.2", "set epsilon_high=5.0", "objective='cispo'"]),
        ({"loss_type": "sapo", **SEQUENCE}, ["importance_sampling_level='sequence'", "objective='gspo'"]),
        ({"loss_type": "vespo", "beta": 0.1, **SEQUENCE}, ["weighs the penalty", "'token'"]),
        ({"loss_type": "vespo", "use_vllm": True}, ["vllm_importance_sampling_correction=False"]),
        ({"delta": 0.9}, ["delta=0.9 is an absolute ratio"]),
        ({"loss_type": "sapo", "sapo_temperature_pos": 0}, ["sapo_temperature_pos=0 divides by 0"]),
        ({"loss_type": "gspo"}, ["loss_type='gspo' is none of TRL's", "objective='gspo' is ours"]),
        ({"loss_type": "grpp"}, ["did you mean 'grpo'?"]),
        ({"epsilon": "wide"}, ["epsilon='wide' is not a number"]),
        (
            {
                "loss_type": "gpso",
                "importance_sampling_level": "turn",
                "epsilon": -1.0,
                "split_batches": True,
            },
            ["'gpso'", "='turn' is not token or sequence", "epsilon=-1.0 is not", "accelerator_config"],
        ),
        # Both an objective and TRL's loss: what each would train.
        (
            {"objective": "ctpo", "loss_type": "grpo", "epsilon": 3e-4},
            ["Drop loss_type, epsilon to train ctpo", "in nats, not the ratio", "read as objective='grpo'"],
        ),
        (
            {"objective": "gspo", "epsilon": 3e-4},
            ["objective_kwargs={'ratio_low': 0.0003, 'ratio_high': 0.0003}"],
        ),
        ({"objective": "reinforce", "delta": 4.0}, ["reinforce has no such bounds"]),
        (
            {"objective_kwargs": {"log_high": 0.1}, "loss_type": "grpo"},
            ["drop objective_kwargs to train TRL's"],
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    settings: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="=") as refused:
        CTPOConfig(str(tmp_path), use_cpu=True, **settings)
    message = str(refused.value)
    assert "\n" not in message
    for words in named:
        assert words in message
    recipe = {**settings, "use_cpu": True, "output_dir": str(tmp_path), "model": "embedded"}
    if "epsilon" not in settings or settings["epsilon"] != "wide":  # a recipe checks types first
        with pytest.raises(UserError) as in_recipe:
            resolved(recipe)
        assert str(in_recipe.value) == message


def test_nothing_of_trls_loss_trains_ctpo(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LossSettingsNotice)
        config = CTPOConfig(str(tmp_path), use_cpu=True, beta=0.1, scale_rewards="none", num_iterations=2)
    assert (config.objective, config.denominators) == ("ctpo", "minibatch")
    with pytest.warns(LossSettingsNotice, match=r"sapo_k|sapo_temperature_neg: TRL's dapo does not read it"):
        ignored = CTPOConfig(str(tmp_path), use_cpu=True, loss_type="dapo", sapo_temperature_neg=2.0)
    assert ignored.objective == "dapo"
    assert {name: getattr(ignored, name) for name in LOSS_SETTINGS} == dict.fromkeys(LOSS_SETTINGS)


def test_trls_defaults_are_those_of_the_installed_trl() -> None:
    assert {name: TRL_DEFAULTS[name] for name in LOSS_SETTINGS} == LOSS_SETTINGS
    assert not set(OLDER_KEYS) & set(TRL_DEFAULTS)


def test_a_recipe_reads_the_same(tmp_path: Path) -> None:
    """And an override of the embedded recipe's objective by TRL's settings, or of those by an objective."""
    keys = merge(
        embedded_recipe(), {"loss_type": "dr_grpo", "epsilon_high": 0.28, "output_dir": str(tmp_path)}
    )
    with pytest.warns(LossSettingsNotice, match="objective='dr-grpo'"):
        _, config = build({**keys, "use_cpu": True})
    with pytest.warns(LossSettingsNotice):
        saved = resolved(keys)
    assert saved["objective"] == config.objective == "dr-grpo"
    assert saved["objective_kwargs"] == config.objective_settings()
    assert saved["objective_kwargs"]["norm_length"] == 96
    assert saved["denominators"] == "rollout-batch"
    assert not set(saved) & set(LOSS_SETTINGS)
    assert resolved({**saved, "output_dir": "x"}) == saved
    assert resolved(merge(keys, {"objective": "ctpo"}))["objective"] == "ctpo"


def test_with_vllm_trls_correction_is_kept() -> None:
    vllm = {"use_vllm": True, "loss_type": "grpo"}
    ours = translate(vllm, TRL_DEFAULTS).settings
    wanted = as_in_trl(
        *(TRL_DEFAULTS[f"vllm_importance_sampling_{n}"] for n in ("mode", "clip_min", "clip_max"))
    )
    config = CTPOConfig(use_cpu=True, **{**vllm, **ours, "loss_type": None})
    assert config.build_correction() == wanted
    for changed in (
        {"vllm_importance_sampling_clip_max": 2.0},
        {"vllm_importance_sampling_correction": False},
        {"anchor": "rollout"},
        {"rollout_correction": "tis"},
    ):
        assert "rollout_correction" not in translate({**vllm, **changed}, TRL_DEFAULTS).settings


def test_from_grpo(tmp_path: Path) -> None:
    path = str(tmp_path)
    trls = GRPOConfig(
        path,
        use_cpu=True,
        loss_type="grpo",
        epsilon=0.1,
        beta=0.2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
    )
    with pytest.warns(LossSettingsNotice, match="objective='grpo'"):
        same = CTPOConfig.from_grpo(trls)
    assert same.objective_kwargs == {"ratio_low": 0.1, "ratio_high": 0.1, "ratio_dual": None}
    assert (same.beta, same.learning_rate, same.bf16, same.gradient_checkpointing) == (
        0.2,
        1e-3,
        False,
        False,
    )
    assert (same.steps_per_generation, same.generation_batch_size) == (2, 16)
    with pytest.warns(
        LossSettingsNotice, match="objective='ctpo' takes the place of loss_type='grpo', epsilon=0.1"
    ):
        other = CTPOConfig.from_grpo(trls, "ctpo", steps_per_generation=4)
    assert (other.objective, other.objective_kwargs, other.generation_batch_size) == ("ctpo", None, 32)
    large = CTPOConfig.from_grpo(GRPOConfig(path, use_cpu=True, generation_batch_size=64, report_to="none"))
    assert (large.objective, large.generation_batch_size, large.report_to) == ("ctpo", 64, [])
    several = CTPOConfig.from_grpo(
        GRPOConfig(path, use_cpu=True, steps_per_generation=4), steps_per_generation=16
    )
    assert (several.steps_per_generation, several.generation_batch_size) == (16, 128)
    with pytest.raises(ValueError, match=r"config is a str; CTPOConfig.from_grpo takes a trl.GRPOConfig"):
        CTPOConfig.from_grpo("grpo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"args is a GRPOConfig; .*CTPOConfig.from_grpo\(args\)"):
        CTPOTrainer("no model", lambda **_: 0.0, trls)


def test_older_keys_get_a_sentence(tmp_path: Path) -> None:
    older = {"evaluation_strategy": "steps", "warmup_ratio": 0.1, "no_cuda": True, "vllm_max_model_len": 512}
    idle = {"overwrite_output_dir": True, "use_liger_loss": True, "logging_dir": "logs", "vllm_dtype": "auto"}
    with pytest.warns(OlderKeyWarning) as notices:
        config = CTPOConfig(str(tmp_path), **older, **idle)
    sentences = [str(each.message) for each in notices if each.category is OlderKeyWarning]
    assert len(sentences) == 8
    assert all(any(f"{key}=" in each for each in sentences) for key in (*older, *idle))
    assert str(config.eval_strategy.value) == "steps"
    assert (config.warmup_steps, config.use_cpu, config.vllm_max_model_length) == (0.1, True, 512)
    assert {name: getattr(config, name) for name in OLDER_KEYS} == dict.fromkeys(OLDER_KEYS)
    with pytest.raises(
        ValueError, match=r"warmup_ratio=0.1 is an older name of warmup_steps, which is 5; drop"
    ):
        CTPOConfig(str(tmp_path), use_cpu=True, warmup_ratio=0.1, warmup_steps=5)


@pytest.mark.parametrize("key", OLDER_KEYS)
def test_every_older_key_has_an_answer(key: str) -> None:
    try:
        answers = translate({key: True}, TRL_DEFAULTS).older
    except ValueError as error:
        answers = [str(error)]
    assert len(answers) == 1
    assert answers[0].startswith(f"{key}=True ")
    assert translate({key: None}, TRL_DEFAULTS).older == []
