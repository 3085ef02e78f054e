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


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_tokens_of_an_old_policy_are_corrected(estimator: str) -> None:
    """Under samples of another policy the ratio gives the reverse divergence, in value and in gradient."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.2, 0.3, 0.1], dtype=torch.float64).log_softmax(0)
    old = torch.tensor([-0.4, 0.6, 0.0], dtype=torch.float64).log_softmax(0)
    logps = logits.log_softmax(0)
    exact = (logps.exp() * (logps - ref)).sum()
    estimate = (old.exp() * kl_penalty(logps, ref, estimator, old_logps=old)).sum()
    torch.testing.assert_close(estimate, exact, rtol=1e-12, atol=0.0)
    (slope,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-14)


def test_a_hopeless_reference_stays_finite() -> None:
    logps = torch.zeros(2, requires_grad=True)
    penalty = kl_penalty(logps, torch.tensor([1e5, -1e5]), "k3")
    assert penalty.isfinite().all()
    penalty.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean"])
def test_penalties_are_added_with_the_reduction_of_the_loss(reduction: str) -> None:
    """The documented sum `loss + beta * objective.reduce(...)`, with anything outside the mask."""
    batch = make()
    ref = batch.logps - 0.3
    ref[~batch.mask] = torch.nan
    entropies = torch.rand(batch.logps.shape, dtype=torch.float64)
    entropies[~batch.mask] = torch.inf
    entropies.requires_grad_()
    objective = preset("ctpo", reduction=reduction)
    _, plain = run(objective, batch)
    logps = batch.logps.clone().requires_grad_()
    out = objective(logps, batch.old, batch.advantages, batch.mask)
    kl = objective.reduce(kl_penalty(logps, ref, "k2"), batch.mask)
    entropy = objective.reduce(entropy_penalty(entropies), batch.mask)
    grad, slope = torch.autograd.grad(out.loss + 0.5 * kl + 0.25 * entropy, (logps, entropies))
    assert kl.item() == pytest.approx(0.3**2 / 2)
    lengths, rows = batch.mask.sum(-1, keepdim=True), batch.mask.any(-1).sum()
    share = {"token-mean": 1 / batch.mask.sum(), "seq-mean-token-mean": 1 / (rows * lengths)}[reduction]
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(grad, torch.where(batch.mask, plain + 0.5 * 0.3 * share, zero))
    torch.testing.assert_close(slope, torch.where(batch.mask, -0.25 * share, zero).double())


def test_penalties_of_nothing_are_nothing() -> None:
    """No token under the mask: 0, not 0/0."""
    batch = make(rows=2)
    values = kl_penalty(batch.logps, batch.logps - 1)
    assert preset("ctpo").reduce(values, torch.zeros_like(batch.mask)).item() == 0.0


@pytest.mark.parametrize("backend", ["auto", "compose"])
def test_no_gradient_flows_but_into_the_policy(backend: str) -> None:
    batch = make()
    others = {
        "old_logps": batch.old.clone(),
        "advantages": batch.advantages.clone(),
        "weights": torch.rand(batch.logps.shape, dtype=torch.float64),
    }
    ref = batch.logps - 0.3
    for value in (*others.values(), ref):
        value.requires_grad_()
    logps = batch.logps.clone().requires_grad_()
    objective = preset("ctpo", backend=backend)
    out = objective(logps, response_mask=batch.mask, **others)
    (out.loss + 0.5 * objective.reduce(kl_penalty(logps, ref), batch.mask)).backward()
    assert logps.grad is not None
    assert [name for name, value in others.items() if value.grad is not None] == []
    assert ref.grad is None
