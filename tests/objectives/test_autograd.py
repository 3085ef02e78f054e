"""Derivatives through the C pass, and what else torch does with calls and graphs."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from ctpo.objectives import preset
from ctpo.objectives.cpu.library import available
from ctpo.objectives.layouts.padded import Padded

from .batches import Batch, make, run
from .compositions import PRESETS, both

pytestmark = pytest.mark.skipif(not available(), reason="needs a C compiler")


def is_native(value: Tensor) -> bool:
    return "Native" in type(value.grad_fn).__name__


def test_auto_takes_the_c_pass_and_details_the_definition() -> None:
    batch = make()
    logps = batch.logps.clone().requires_grad_()
    assert is_native(preset("ctpo")(logps, batch.old, batch.advantages, batch.mask).token_loss)
    detailed = preset("ctpo")(logps, batch.old, batch.advantages, batch.mask, details=True)
    assert not is_native(detailed.token_loss)
    with pytest.raises(ValueError, match=r"cannot run this call: it leaves no details .*backend=\"auto\""):
        preset("ctpo", backend="native")(logps, batch.old, batch.advantages, batch.mask, details=True)
    with pytest.raises(ValueError, match="it does not know QuantileGate"):
        preset("prefix-quantile", backend="native")(logps, batch.old, batch.advantages, batch.mask)


@pytest.mark.parametrize("name", PRESETS)
def test_gradients_of_token_losses(name: str) -> None:
    """Of several chunks, one of them without a token; NaN above a token that does not count."""
    batch, grads = make(rows=4, length=1700), []
    batch.mask[:, 512:1024] = False
    upstream = torch.linspace(0.5, 2, batch.logps.numel(), dtype=torch.float64).reshape(batch.logps.shape)
    upstream[:, 600] = float("nan")
    for objective in both(name):
        logps = batch.logps.clone().requires_grad_()
        out = objective(logps, batch.old, batch.advantages, batch.mask)
        grads += torch.autograd.grad(out.token_loss, logps, upstream, retain_graph=True)
        grads += torch.autograd.grad(
            (2 * out.loss, out.token_loss), logps, (torch.ones(()).double(), upstream)
        )
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-11, atol=1e-16)
    torch.testing.assert_close(grads[1], grads[3], rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", ["ctpo", "cispo", "gspo"])
def test_a_retained_graph_gives_gradients_of_their_own(name: str) -> None:
    """The first backward pass is handed what the forward pass left; a second makes its own."""
    batch = make()
    fast, definition = both(name)
    _, expected = run(definition, batch)
    logps = batch.logps.clone().requires_grad_()
    loss = fast(logps, batch.old, batch.advantages, batch.mask).loss
    for factor in (3.0, 1.0, 2.0):
        (grad,) = torch.autograd.grad(factor * loss, logps, retain_graph=True)
        torch.testing.assert_close(grad, factor * expected, rtol=1e-11, atol=1e-16)
        grad.fill_(7.0)  # a caller may
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_tensor_changed_before_its_backward_pass_is_an_error() -> None:
    batch = make()
    logps = batch.logps.clone().requires_grad_()
    out = preset("ctpo", backend="native")(logps, batch.old, batch.advantages, batch.mask)
    batch.advantages.mul_(2)
    out.loss.backward(retain_graph=True)  # the gradient was made before
    with pytest.raises(RuntimeError, match="changed in place"):
        out.token_loss.sum().backward()


@pytest.mark.parametrize("name", ["ctpo-prefix-gradient", "gspo", "grpo", "reinforce"])
@pytest.mark.parametrize("drift", [1e-3, 0.3])
def test_gradcheck(name: str, drift: float) -> None:
    """These differentiate the ratio they weigh with, so finite differences see the whole gradient."""
    batch = make(rows=5, length=6, drift=drift)

    def loss(logps: Tensor) -> tuple[Tensor, Tensor]:
        out = preset(name, backend="native")(logps, batch.old, batch.advantages, batch.mask)
        return out.loss, out.token_loss

    assert torch.autograd.gradcheck(loss, batch.logps.clone().requires_grad_())


def test_gradcheck_of_the_decomposition() -> None:
    """In rows of one token there is no prefix to hold fixed, and ctpo is differentiated exactly."""
    batch = make(rows=5, length=1, drift=0.2)

    def loss(logps: Tensor) -> Tensor:
        return preset("ctpo", log_low=1.0, log_high=1.0)(logps, batch.old, batch.advantages, batch.mask).loss

    assert torch.autograd.gradcheck(loss, batch.logps.clone().requires_grad_())


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("grpo", {"ratio_low": 0.9, "ratio_high": 9.0, "ratio_dual": None}),
        ("ctpo-prefix-gradient", {"log_low": 0.9, "log_high": 9.0, "log_dual": None}),
    ],
)
def test_second_derivatives(name: str, bounds: dict[str, Any]) -> None:
    """By finite differences of the gradient, of the loss and of token losses."""
    batch = make(rows=4, length=5, drift=0.2)
    objective = preset(name, **bounds, backend="native")

    def losses(logps: Tensor) -> tuple[Tensor, Tensor]:
        out = objective(logps, batch.old, batch.advantages, batch.mask)
        return out.loss, out.token_loss

    assert torch.autograd.gradgradcheck(losses, batch.logps.clone().requires_grad_())


def test_second_derivatives_of_a_packed_batch_of_bfloat16() -> None:
    """The graph runs through the cast, and through what upstream gradients depend on."""
    batch = make(rows=1, length=30, drift=0.1)
    old, ids, grads = batch.old[0].bfloat16(), torch.arange(30) // 15, []
    for objective in both("grpo"):
        logps = batch.logps[0].bfloat16().requires_grad_()
        out = objective(logps, old, torch.tensor([1.0, -1.0]), batch.mask[0], segment_ids=ids)
        (grad,) = torch.autograd.grad(out.loss.square(), logps, create_graph=True)
        grads += torch.autograd.grad(grad.float().square().sum(), logps)
    assert grads[0].count_nonzero() > 10
    torch.testing.assert_close(grads[0], grads[1], rtol=2e-2, atol=1e-6)


def test_transforms() -> None:
    """torch.func.grad, vmap, jvp and hessian of a caller, and backward passes over several upstream gradients."""
    batch = make(rows=3, length=8)

    def loss(logps: Tensor, backend: str = "auto") -> Tensor:
        return preset("grpo", backend=backend)(logps, batch.old, batch.advantages, batch.mask).loss

    _, expected = run(preset("grpo", backend="compose"), batch)
    torch.testing.assert_close(torch.func.grad(loss)(batch.logps), expected)
    several = torch.stack([batch.logps, batch.logps - 0.01])
    torch.testing.assert_close(torch.func.vmap(loss)(several), torch.stack([loss(x) for x in several]))
    direction = torch.ones_like(batch.logps)
    value, slope = torch.func.jvp(loss, (batch.logps,), (direction,))
    torch.testing.assert_close((value, slope), (loss(batch.logps), expected.sum()))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(batch.logps, direction)
        tangent = torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent
    torch.testing.assert_close(tangent, expected.sum())
    exact = torch.func.hessian(lambda x: loss(x, "compose"))(batch.logps)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, batch.logps), exact)
    logps = batch.logps.clone().requires_grad_()
    upstream = torch.tensor([1.0, -2.0]).double()
    (batched,) = torch.autograd.grad(loss(logps), logps, upstream, is_grads_batched=True)
    torch.testing.assert_close(batched, upstream[:, None, None] * expected)


@pytest.mark.parametrize("which", ["old", "advantages", "mask", "weights", "num_tokens"])
@pytest.mark.parametrize("name", ["ctpo", "gspo", "cispo"])
def test_arguments_made_in_inference_mode(name: str, which: str) -> None:
    """As a rollout leaves them; all derivatives are those of ordinary tensors."""
    batch = make()
    arguments = vars(batch) | {"weights": torch.rand_like(batch.logps), "num_tokens": torch.tensor(9.0)}
    with torch.inference_mode():
        odd = arguments | {which: arguments[which].clone()}
    grads = []
    for each in (arguments, odd):
        logps = batch.logps.clone().requires_grad_()
        objective = preset(name, backend="native")
        out = objective(
            logps,
            each["old"],
            each["advantages"],
            each["mask"],
            weights=each["weights"],
            num_tokens=each["num_tokens"],
        )
        (grad,) = torch.autograd.grad(out.loss, logps, create_graph=True)
        grads += [grad.detach(), *torch.autograd.grad(out.token_loss.sum(), logps)]
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(grads[1], grads[3])


def test_in_inference_mode_and_without_gradients() -> None:
    batch = make()
    logps, *others = vars(batch).values()
    expected = preset("ctpo", backend="compose")(logps, *others).loss
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            out = preset("ctpo", backend="native")(logps.clone().requires_grad_(), *others)
        assert not out.loss.requires_grad
        torch.testing.assert_close(out.loss, expected)


def test_autocast() -> None:
    batch = make().to(torch.float32)
    _, expected = run(preset("ctpo"), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, grad = run(preset("ctpo", backend="native"), batch)
    assert out.loss.dtype == torch.float32
    assert torch.equal(grad, expected)


def test_copies_of_an_objective() -> None:
    batch, objective = make(), preset("ctpo", backend="native")
    expected = run(objective, batch)[1]
    for again in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert again == objective
        assert torch.equal(run(again, batch)[1], expected)


def test_threads() -> None:
    """Calls in several threads at once, and backward passes in other threads than the calls."""
    batches = [make(rows=5, length=300, seed=seed) for seed in range(8)]
    expected = [run(preset("ctpo-prefix-gradient", backend="compose"), batch)[1] for batch in batches]
    grads: list[Any] = [None] * len(batches)
    leaves = [batch.logps.clone().requires_grad_() for batch in batches]
    losses: list[Any] = [None] * len(batches)

    def call(i: int) -> None:
        batch = batches[i]
        objective = preset("ctpo-prefix-gradient", backend="native")
        losses[i] = objective(leaves[i], batch.old, batch.advantages, batch.mask).loss

    def back(i: int) -> None:
        (grads[i],) = torch.autograd.grad(losses[i], leaves[i])

    for work in (call, back):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for grad, right in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-11, atol=1e-16)


def test_logps_without_gradient_of_a_batch() -> None:
    """Only the log-probs of the current policy get a gradient."""
    batch = make()
    old, advantages = batch.old.clone().requires_grad_(), batch.advantages.clone().requires_grad_()
    logps = batch.logps.clone().requires_grad_()
    preset("ctpo", backend="native")(logps, old, advantages, batch.mask).loss.backward()
    assert logps.grad is not None
    assert old.grad is None
    assert advantages.grad is None


def test_rows_with_a_graph_behind_them() -> None:
    """Log-probs that are no leaf, expanded, in another dtype: the gradient reaches what they were made from."""
    batch = make()
    grads = []
    for objective in both("ctpo"):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        out = objective((batch.logps * scale).t().contiguous().t(), batch.old, batch.advantages, batch.mask)
        grads += torch.autograd.grad(out.loss, scale)
    torch.testing.assert_close(*grads)


def test_layouts_are_not_needed_by_the_backward_pass() -> None:
    """The transpose of a mean over a packed batch is the C pass's own."""
    rows = make(rows=4, length=50)
    flat = Batch(*(x.reshape(-1) if x.ndim == 2 else x for x in vars(rows).values()))
    for name in ("gspo", "ctpo-prefix-gradient"):
        _, grad = run(preset(name, backend="native"), flat, cu_seqlens=torch.arange(0, 201, 50))
        _, expected = run(preset(name, backend="compose"), rows)
        torch.testing.assert_close(grad.view(4, 50), expected, rtol=1e-10, atol=1e-16)
    assert Padded().differentiable
