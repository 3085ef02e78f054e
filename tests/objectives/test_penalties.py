"""Penalties: estimators, their place in the loss, and their masks."""

from __future__ import annotations

import pytest
import torch

from ctpo.objectives import preset
from ctpo.objectives.penalties import entropy_penalty, kl_penalty

from .batches import make, run


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimators_on_an_enumerated_policy(estimator: str) -> None:
    """Means over every action of a three-way choice, against the KL divergence itself."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.2, 0.3, 0.1], dtype=torch.float64).log_softmax(0)
    logps = logits.log_softmax(0)
    exact = (logps.exp() * (logps - ref)).sum()
    value = (logps.exp() * kl_penalty(logps, ref, estimator)).sum().item()
    if estimator == "k2":
        assert value == pytest.approx(exact.item(), rel=0.2)
    else:
        assert value == pytest.approx(exact.item(), rel=1e-12)
    # Differentiated as a loss under samples of the policy itself.
    as_loss = (logps.detach().exp() * kl_penalty(logps, ref, estimator)).sum()
    (slope,) = torch.autograd.grad(as_loss, logits, retain_graph=True)
    (reverse,) = torch.autograd.grad(exact, logits, retain_graph=True)
    (forward,) = torch.autograd.grad((ref.exp() * (ref - logps)).sum(), logits)
    expected = {"k1": torch.zeros_like(reverse), "k2": reverse, "k3": forward}[estimator]
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-14)


def test_a_hopeless_reference_stays_finite() -> None:
    logps = torch.zeros(2, requires_grad=True)
    penalty = kl_penalty(logps, torch.tensor([1e5, -1e5]), "k3")
    assert penalty.isfinite().all()
    penalty.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean"])
def test_penalties_enter_the_loss_with_its_reduction(reduction: str) -> None:
    batch = make()
    ref = batch.logps - 0.3
    entropies = torch.rand(batch.logps.shape, dtype=torch.float64)
    ref[~batch.mask], entropies[~batch.mask] = torch.nan, torch.inf
    plain, plain_grad = run(preset("ctpo", reduction=reduction), batch)
    objective = preset("ctpo", reduction=reduction, kl_coef=0.5, kl_estimator="k2", entropy_coef=0.25)
    out, grad = run(objective, batch, ref_logps=ref, entropies=entropies)
    kl = objective.reduce(kl_penalty(batch.logps, ref, "k2"), batch.mask)
    entropy = objective.reduce(entropy_penalty(entropies), batch.mask)
    torch.testing.assert_close(out.loss, plain.loss + 0.5 * kl + 0.25 * entropy)
    assert out.stats["kl_ref"].item() == pytest.approx(0.3**2 / 2)
    assert out.stats["entropy"].item() == pytest.approx(entropies[batch.mask].mean().item())
    assert not any(value.requires_grad for value in out.stats.values())
    per_token = {"token-mean": 0.3 * 0.5 / batch.mask.sum()}
    if reduction in per_token:
        expected = torch.where(batch.mask, plain_grad + per_token[reduction], 0.0)
        torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(out.token_loss, plain.token_loss)


def test_entropy_carries_gradient() -> None:
    batch = make()
    entropies = torch.rand(batch.logps.shape, dtype=torch.float64, requires_grad=True)
    out = preset("ctpo", entropy_coef=0.1)(
        batch.logps, batch.old, batch.advantages, batch.mask, entropies=entropies
    )
    (slope,) = torch.autograd.grad(out.loss, entropies)
    torch.testing.assert_close(slope, torch.where(batch.mask, -0.1 / batch.mask.sum(), 0.0).double())


def test_an_unusable_reference_token_is_left_out() -> None:
    batch = make()
    ref = batch.logps - 0.3
    ref[0, int(batch.mask[0].nonzero()[0])] = -torch.inf
    out, grad = run(preset("ctpo", kl_coef=0.5), batch, ref_logps=ref)
    assert out.loss.isfinite()
    assert grad.isfinite().all()


def test_penalties_of_nothing_are_nothing() -> None:
    """No token under the mask: figures of 0, not 0/0."""
    batch = make(rows=2)
    batch.mask[:] = False
    objective = preset("ctpo", kl_coef=0.5, entropy_coef=0.25)
    out, grad = run(objective, batch, ref_logps=batch.logps - 1, entropies=batch.logps.abs())
    assert [out.loss.item(), out.stats["kl_ref"].item(), out.stats["entropy"].item()] == [0.0, 0.0, 0.0]
    assert grad.abs().max().item() == 0.0


@pytest.mark.parametrize("backend", ["auto", "compose"])
def test_no_gradient_flows_but_into_the_policy(backend: str) -> None:
    batch = make()
    others = {
        "old_logps": batch.old.clone(),
        "advantages": batch.advantages.clone(),
        "weights": torch.rand(batch.logps.shape, dtype=torch.float64),
    }
    if backend == "compose":
        others["ref_logps"] = batch.logps - 0.3
    for value in others.values():
        value.requires_grad_()
    logps = batch.logps.clone().requires_grad_()
    coefficient = 0.5 if backend == "compose" else 0.0
    out = preset("ctpo", backend=backend, kl_coef=coefficient)(logps, mask=batch.mask, **others)
    out.loss.backward()
    assert logps.grad is not None
    assert [name for name, value in others.items() if value.grad is not None] == []
