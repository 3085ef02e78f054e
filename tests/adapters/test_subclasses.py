"""Adapters that are subclasses of a trainer's own class: its penalties, reductions and records stay."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ctpo.adapters.shared import settings_from_environment
from ctpo.errors import UserError

from . import handover
from .standins import provide


def close(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["ctpo", '{"prest": "ctpo"}', "[1]", '{"knobs": {"log_high": 0.1}} x'])
def test_settings_that_cannot_be_read(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTPO_LOSS", text)
    with pytest.raises(UserError, match=r"CTPO_LOSS=.* cannot be read") as error:
        settings_from_environment()
    assert "\n" not in str(error.value)


def test_openrlhf_reduces_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    provide("openrlhf", monkeypatch)
    batch = handover.make()
    close(handover.openrlhf("ctpo", batch, kind="gspo"), handover.core("ctpo", batch, "seq-mean-token-mean"))


def test_openrlhf_anchors_at_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    provide("openrlhf", monkeypatch)
    batch = handover.make()
    moved = handover.Batch(batch.logps, batch.old + 0.02, batch.advantages, batch.mask)
    close(
        handover.openrlhf("ctpo", moved, rollout=batch.old, anchor="rollout"),
        handover.core("ctpo", batch, "token-mean"),
    )


def test_openrlhf_installs_once_and_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the trainer has taken the class from its package before."""
    models = provide("openrlhf", monkeypatch)["openrlhf.models"]
    monkeypatch.setattr(models, "PolicyLoss", models.PolicyLoss)  # undone after the test
    user = SimpleNamespace(PolicyLoss=models.PolicyLoss)
    monkeypatch.setitem(sys.modules, "openrlhf.trainer.ray.ppo_actor", user)  # type: ignore[arg-type]
    adapter: Any = importlib.import_module("ctpo.adapters.openrlhf")
    adapter.install()
    ours = models.PolicyLoss
    adapter.install()
    assert user.PolicyLoss is models.PolicyLoss is ours
    assert ours.__module__ == "ctpo.adapters.openrlhf"
    with handover.chosen("gspo", {}):
        made = adapter.environment()
    assert made["worker_process_setup_hook"] == "ctpo.adapters.openrlhf.install"
    assert '"preset": "gspo"' in made["env_vars"]["CTPO_LOSS"]
    for setting in ({"dual_clip": 3.0}, {"enable_vllm_is_correction": True}):
        with pytest.raises(UserError, match="act inside the loss"):
            ours(**setting)(*(torch.zeros(1, 2) for _ in range(3)))


def with_k3(batch: handover.Batch, reduction: str, coefficient: float) -> tuple[Tensor, Tensor]:
    """The objective and a penalty on KL to `batch.old`, by its formula, over the tokens of the batch."""
    loss, grad = handover.core("ctpo", batch, reduction)
    apart = (batch.old - batch.logps).double()
    k3 = ((apart.exp() - apart - 1) * batch.mask).sum() / batch.mask.sum()
    slope = (1 - apart.exp()) * batch.mask / batch.mask.sum()
    return loss + coefficient * k3, grad + coefficient * slope


def test_roll_keeps_its_penalty_on_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    provide("roll", monkeypatch)
    batch = handover.make()
    close(handover.roll("ctpo", batch, kl=0.7), with_k3(batch, "token-mean", 0.7))


@pytest.mark.parametrize("worker", ["RLVRWorker", "AgenticWorker"])
def test_roll_reduces_as_it_says(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provide("roll", monkeypatch)
    batch = handover.make()
    close(
        handover.roll("ctpo", batch, worker=worker, mode="seq-mean-token-mean"),
        handover.core("ctpo", batch, "seq-mean-token-mean"),
    )


def test_ms_swift_keeps_its_penalty_on_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    provide("ms_swift", monkeypatch)
    batch = handover.make()
    close(handover.ms_swift("ctpo", batch, beta=0.7), with_k3(batch, "token-mean", 0.7))


@pytest.mark.parametrize(
    ("kind", "reduction", "factor"),
    [
        ("grpo", "seq-mean-token-mean", 1),
        ("bnpo", "token-mean", 1),
        ("dr_grpo", "seq-mean-token-sum", 1 / 32),
    ],
)
def test_ms_swift_reduces_as_it_says(
    kind: str, reduction: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide("ms_swift", monkeypatch)
    batch = handover.make()
    loss, grad = handover.core("ctpo", batch, reduction)
    close(handover.ms_swift("ctpo", batch, loss_type=kind), (loss * factor, grad * factor))


@pytest.mark.parametrize("trainer", ["roll", "ms_swift"])
def test_a_ratio_that_overflows_leaves_the_loss_finite(trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's own loss sees it too, times advantages of 0."""
    provide(trainer, monkeypatch)
    batch = handover.make()
    batch.old[0, 0] -= 300
    loss, grad = getattr(handover, trainer)("ctpo", batch)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_settings_inside_of_their_losses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = handover.make()
    swift = provide("ms_swift", monkeypatch)["swift.rlhf_trainers"]
    monkeypatch.setattr(swift.GRPOTrainer, "top_entropy_quantile", 0.2)
    with pytest.raises(UserError, match=r"top_entropy_quantile=0.2 has no effect"):
        handover.ms_swift("ctpo", batch)
    monkeypatch.undo()
    provide("ms_swift", monkeypatch)
    with pytest.raises(UserError, match="loss_type='cispo' is a loss of its own"):
        handover.ms_swift("ctpo", batch, loss_type="cispo")
    provide("roll", monkeypatch)
    adapter: Any = importlib.import_module("ctpo.adapters.roll")
    worker, filters = adapter.RLVRWorker(), [SimpleNamespace(enabled=True)]
    correction = SimpleNamespace(is_weight=SimpleNamespace(enabled=False), filters=filters)
    worker.pipeline_config = SimpleNamespace(train_infer_correction=correction)
    with pytest.raises(UserError, match="train_infer_correction acts inside"):
        worker.loss_func(None, None)
    assert not hasattr(adapter, "DPOWorker")


def test_areal_chooses_the_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two hand-overs has the right log-probs in one place, and others in the other."""
    provide("areal", monkeypatch)
    batch = handover.make()
    for anchor in ("old", "rollout"):
        close(handover.areal("ctpo", batch, anchor=anchor), handover.core("ctpo", batch, "token-mean"))


def test_areal_replaces_its_policy_loss_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = provide("areal", monkeypatch)
    theirs = modules["areal.trainer.ppo.actor"]
    adapter: Any = importlib.import_module("ctpo.adapters.areal")
    engine = adapter.MegatronPPOActor([torch.ones(3, requires_grad=True)])
    part = {"loss_mask": torch.ones(3), "cu_seqlens": torch.tensor([0, 3])}
    count = {"loss_weight_fn": lambda x: x["loss_mask"].count_nonzero()}
    assert engine.train_batch([part], loss_fn=lambda logprobs, *_, **__: logprobs.sum(), **count) == {
        "loss": 3.0
    }
    for wrong in ({"c_clip": 3.0}, {"use_sapo_loss": True}, {"m2_threshold": 0.04}):
        settings = {"eps_clip": 0.2, "eps_clip_higher": None, "c_clip": None, **wrong}
        with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* has no effect"):
            engine.train_batch([part], loss_fn=partial(theirs.grpo_loss_fn, **settings), **count)
    held = {"logprobs": torch.zeros(3), "advantages": torch.ones(3), **part}
    loglinear = partial(
        theirs.grpo_loss_fn, eps_clip=0.2, eps_clip_higher=None, c_clip=None, prox_logp_method="loglinear"
    )
    with pytest.raises(UserError, match="prox_logp_method='loglinear' has no effect"):
        engine.train_batch([held], loss_fn=loglinear, **count)


def test_trls_own_loss_is_our_grpo(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's method itself, on the same micro-batch from its own packer."""
    trl = provide("trl_async", monkeypatch)["trl.experimental.async_grpo.async_grpo_trainer"]
    batch = handover.make()
    theirs = handover.trl_loss(handover.trl_trainer(trl.AsyncGRPOTrainer), batch)
    close(handover.trl_async("grpo", batch, ratio_low=0.08, ratio_high=0.08), theirs)


def test_trls_records_stay_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    provide("trl_async", monkeypatch)
    adapter: Any = importlib.import_module("ctpo.adapters.trl_async")
    trainer = handover.trl_trainer(adapter.CTPOAsyncTrainer)
    trainer.objective = importlib.import_module("ctpo.adapters.shared").objective_for("ctpo", {})
    trainer.aux_loss_enabled, trainer.router_aux_loss_coef, trainer.current_gradient_accumulation_steps = (
        True,
        2.0,
        4,
    )
    batch = handover.make()
    inputs, _ = handover.trl_rows(batch)
    scored = torch.full(inputs["input_ids"].shape, -0.7)
    outputs = SimpleNamespace(log_probs=scored, entropy=scored, aux_loss=torch.tensor(1.5))
    with_aux = trainer.compute_loss(lambda **_: outputs, inputs)
    trainer.aux_loss_enabled = False
    assert (with_aux - trainer.compute_loss(lambda **_: outputs, inputs)).item() == pytest.approx(
        2.0 * 1.5 / 4
    )
    assert {"ratio", "kl", "clip_ratio/region_mean", "ctpo/clip_fraction", "ctpo/ess"} <= trainer._metrics[
        "train"
    ].keys()
    assert trainer._step_trained_tokens == 2 * batch.mask.sum()
