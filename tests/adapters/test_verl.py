"""verl itself, on the CPU: its registration, its `ppo_loss` on jagged batches, its configuration."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.objectives import Gate, RolloutCorrection, Weight, correct_rollout

from . import handover

pytest.importorskip(
    "verl", reason="verl is not installed (pip install -r tests/adapters/requirements-verl.txt)"
)


def python(code: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which an installed package announces our entry point."""
    metadata = tmp_path / "announced-1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: announced\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[verl.plugins]\nctpo = ctpo.adapters.verl\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip


def test_the_entry_point_registers_and_says_so(tmp_path: Path) -> None:
    code = (
        "import verl; from verl.trainer.ppo.core_algos import get_policy_loss_fn as get; "
        "print(get('ctpo').__module__, get('ctpo/gspo').func.__module__, get('gspo').__module__)"
    )
    ran = python(code, tmp_path)
    assert ran.returncode == 0, ran.stderr
    # verl's own losses keep their names.
    assert ran.stdout.split() == ["ctpo.adapters.verl", "ctpo.adapters.verl", "verl.trainer.ppo.core_algos"]
    assert ran.stderr.count("ctpo: registered with verl") == 1


def test_a_failing_entry_point_is_heard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """verl swallows what an entry point raises; the adapter speaks before it does."""
    import ctpo.adapters.verl as adapter

    def changed(name: str) -> Any:
        raise RuntimeError("a changed signature")

    with monkeypatch.context() as patch:
        patch.setattr(adapter.core_algos, "register_policy_loss", changed)
        with pytest.raises(RuntimeError):
            importlib.reload(adapter)
    assert "NOT registered with verl" in capfd.readouterr().err
    importlib.reload(adapter)
    assert "ctpo: registered with verl" in capfd.readouterr().err


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def ppo_loss(batch: handover.Batch, **policy_loss: Any) -> tuple[Any, dict[str, Any], torch.Tensor]:
    """verl's own `ppo_loss`, on what its engine hands over: log-probs of whole sequences, jagged responses."""
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig
    from verl.workers.utils.losses import ppo_loss as theirs

    from ctpo.adapters.verl import CTPOPolicyLossConfig

    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, optim=FSDPOptimizerConfig(lr=1e-3),
        policy_loss=CTPOPolicyLossConfig(**policy_loss),
    )  # fmt: skip
    responses = [slice(None, length) for length in handover.LENGTHS]
    fields = {
        "response_mask": batch.mask.long(), "old_log_probs": batch.old, "advantages": batch.advantages,
    }  # fmt: skip
    data = TensorDict(
        {
            "prompts": jagged([torch.ones(n, dtype=torch.long) for n in handover.PROMPTS]),
            "responses": jagged([torch.ones(n, dtype=torch.long) for n in handover.LENGTHS]),
            **{
                key: jagged([value[i, at] for i, at in enumerate(responses)]) for key, value in fields.items()
            },
        },
        batch_size=[len(handover.LENGTHS)],
    )
    tu.assign_non_tensor(
        data, dp_size=1, batch_num_tokens=int(batch.mask.sum()), global_batch_size=len(handover.LENGTHS)
    )
    logps = batch.logps.clone().requires_grad_()
    # The engine scores position p with token p + 1's log-prob, over prompt and response.
    whole = [
        torch.cat([torch.full((prompt - 1,), -9.0), logps[i, :length], torch.full((1,), -9.0)])
        for i, (prompt, length) in enumerate(zip(handover.PROMPTS, handover.LENGTHS, strict=True))
    ]
    loss, metrics = theirs(config, {"log_probs": torch.cat(whole)}, data)
    return loss, metrics, logps


@pytest.mark.parametrize("name", ["ctpo", "grpo", "gspo", "cispo", "minpro"])
def test_ppo_loss_on_jagged_batches(name: str) -> None:
    batch = handover.make()
    knobs = handover.KNOBS.get(name, {})
    loss, metrics, logps = ppo_loss(batch, preset=name, knobs=knobs)
    expected, grad = handover.core(name, batch, "token-mean", **knobs)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, logps)[0].double(), grad, rtol=0, atol=1e-6)
    assert metrics["actor/ctpo/tokens"].aggregate() == batch.mask.sum()
    assert 0 < metrics["actor/pg_clipfrac"].aggregate() < 1


def test_every_preset_by_loss_mode() -> None:
    batch = handover.make()
    loss, _, logps = ppo_loss(batch, loss_mode="ctpo/ctpo-fixed", knobs={"log_high": 0.1})
    grad = handover.core("ctpo-fixed", batch, "token-mean", log_high=0.1)[1]
    torch.testing.assert_close(torch.autograd.grad(loss, logps)[0].double(), grad, rtol=0, atol=1e-6)


def test_our_grpo_is_verls_vanilla() -> None:
    """The same clip ranges, and verl's own loss gives the same gradient: an oracle that is not ours."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig

    batch = handover.make(drift=0.3)
    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, optim=FSDPOptimizerConfig(lr=1e-3),
        clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=3.0,
    )  # fmt: skip
    grads = []
    for name in ("vanilla", "ctpo/grpo"):
        logps = batch.logps.clone().requires_grad_()
        loss, _ = get_policy_loss_fn(name)(
            old_log_prob=batch.old, log_prob=logps, advantages=batch.advantages, response_mask=batch.mask,
            loss_agg_mode="token-mean", config=config, rollout_is_weights=torch.full_like(batch.old, 0.7),
        )  # fmt: skip
        grads.append(torch.autograd.grad(loss, logps)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knobs": {"reduction": "sum"}}, "reduction"),
        ({"knobs": {"kl_coef": 0.1}}, "kl_coef"),
        ({"knobs": {"hihg": 0.1}}, "hihg"),
        ({"preset": "cpto"}, "cpto"),
    ],
)
def test_settings_are_checked_when_they_are_read(settings: dict[str, Any], message: str) -> None:
    from ctpo.adapters.verl import CTPOPolicyLossConfig

    with pytest.raises(ValueError, match=message):
        CTPOPolicyLossConfig(**settings)


def test_bypass_mode_does_not_replace_the_loss() -> None:
    """The legacy trainer's bypass mode overwrites loss_mode; the run would train something else in silence."""
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.rollout_corr_helper import apply_bypass_mode

    import ctpo.adapters.verl  # noqa: F401

    def settings(mode: str) -> Any:
        return OmegaConf.create({"loss_mode": mode})

    batch = DataProto.from_dict({"rollout_log_probs": torch.zeros(2, 3), "old_log_probs": torch.ones(2, 3)})
    for mode in ("ctpo", "ctpo/gspo"):
        with pytest.raises(ValueError, match="use_v1=True"):
            apply_bypass_mode(batch=batch, rollout_corr_config=None, policy_loss_config=settings(mode))
    theirs = settings("vanilla")
    apply_bypass_mode(batch=batch, rollout_corr_config=None, policy_loss_config=theirs)
    assert theirs.loss_mode == "bypass_mode"
    assert not batch.batch["old_log_probs"].any()


GATES = {  # verl's criterion, its threshold, and ours
    "token_k1": ("0.8_1.2", Gate("k1", "token", math.log(0.8), math.log(1.2))),
    "token_k2": ("0.02", Gate("k2", "token", high=0.02)),
    "token_k3": ("0.02", Gate("k3", "token", high=0.02)),
    "seq_sum_k1": ("0.7_1.5", Gate("k1", "sum", math.log(0.7), math.log(1.5))),
    "seq_sum_k2": ("0.2", Gate("k2", "sum", high=0.2)),
    "seq_sum_k3": ("0.2", Gate("k3", "sum", high=0.2)),
    "seq_mean_k1": ("0.99_1.03", Gate("k1", "mean", math.log(0.99), math.log(1.03))),
    "seq_mean_k2": ("0.011", Gate("k2", "mean", high=0.011)),
    "seq_mean_k3": ("0.011", Gate("k3", "mean", high=0.011)),
    "seq_max_k2": ("0.09", Gate("k2", "max", high=0.09)),
    "seq_max_k3": ("0.09", Gate("k3", "max", high=0.09)),
}
WEIGHTS = {  # verl's level and threshold, and ours
    ("token", "1.2"): RolloutCorrection(weight=Weight("token", 1.2)),
    ("sequence", "1.3"): RolloutCorrection(weight=Weight("sum", 1.3)),
    ("token", "0.9_1.1"): RolloutCorrection(weight=Weight("token"), gates=(Gate(low=0.9, high=1.1),)),
    ("sequence", "0.7_1.3"): RolloutCorrection(weight=Weight("sum"), gates=(Gate("ratio", "sum", 0.7, 1.3),)),
}


def mismatch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    old = -2 * torch.rand(40, 30, generator=draw, dtype=torch.float64)
    rollout = (old + 0.15 * torch.randn(40, 30, generator=draw, dtype=torch.float64)).clamp(max=-1e-3)
    return old, rollout, torch.rand(40, 30, generator=draw) < 0.8


@pytest.mark.parametrize("option", GATES)
def test_gates_are_verls(option: str) -> None:
    helper = importlib.import_module("verl.trainer.ppo.rollout_corr_helper")
    old, rollout, mask = mismatch()
    threshold, gate = GATES[option]
    kept, _ = helper.compute_rollout_rejection_mask(old - rollout, mask.double(), option, threshold)
    got = correct_rollout(old, rollout, mask, RolloutCorrection(gates=(gate,)))
    assert 0 < got.rejected.sum() < mask.sum()
    assert torch.equal(got.rejected, mask & (kept == 0))


@pytest.mark.parametrize("setting", WEIGHTS, ids="-".join)
def test_weights_are_verls(setting: tuple[str, str]) -> None:
    helper = importlib.import_module("verl.trainer.ppo.rollout_corr_helper")
    old, rollout, mask = mismatch()
    weights, metrics = helper.compute_rollout_correction_weights(old - rollout, mask.double(), *setting)
    got = correct_rollout(old, rollout, mask, WEIGHTS[setting])
    torch.testing.assert_close(got.weights[mask], weights[mask], rtol=1e-12, atol=0)
    assert got.stats["ess"].item() == pytest.approx(metrics["rollout_is_eff_sample_size"], rel=1e-6)
