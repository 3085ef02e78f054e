"""torch's transforms on the definition: the compiler in one graph, vmap, jvp, second derivatives, and what travels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from ctpo.objectives import Objective, Output, preset, preset_names

from .batches import Batch, make, run, same, turns

ALL = pytest.mark.parametrize("name", preset_names())
SMOOTH = {"grpo": {"ratio_low": 0.9, "ratio_high": 9.0, "ratio_dual": None}, "reinforce": {}}


def packed(drift: float = 0.1) -> tuple[Batch, Tensor, Tensor]:
    """A packed batch with an empty segment, its ids and its cumulative lengths."""
    rows = make(rows=1, length=30, drift=drift)
    cu = torch.tensor([0, 4, 19, 19, 30])
    ids = torch.arange(4).repeat_interleave(cu.diff())
    advantages = torch.tensor([1.0, -0.5, 3.0, 2.0], dtype=torch.float64)
    return Batch(rows.logps[0], rows.old[0], advantages, rows.mask[0]), ids, cu


def compiled(objective: Objective, backend: str = "aot_eager") -> Callable[..., Output]:
    torch.compiler.reset()

    def call(*args: Tensor, **kwargs: Tensor) -> Output:
        return objective(*args, **kwargs)

    return torch.compile(call, fullgraph=True, backend=backend)


PADDED, (STREAM, IDS, CU) = make(drift=0.1), packed()
EXTRAS = {"rejection_mask": PADDED.mask & (PADDED.logps < -2), "weights": -PADDED.logps}


def compare(objective: Objective, in_one_graph: Any, batch: Batch, **kwargs: Any) -> None:
    if objective.needs_turns:
        packing = {name: kwargs[name] for name in ("segment_ids", "cu_seqlens") if name in kwargs}
        kwargs["turn_ids"] = turns(batch.mask, **packing)
    out, grad = run(in_one_graph, batch, **kwargs)
    expected, expected_grad = run(objective, batch, **kwargs)
    same(out, expected, 1e-12, 1e-14)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-16)


@ALL
def test_compiled_in_one_graph_it_equals_eager(name: str) -> None:
    """Padded rows with rejection and weights, with gradient."""
    objective = preset(name, reduction="seq-mean-token-mean")
    compare(objective, compiled(objective, "eager"), PADDED, **EXTRAS)


@pytest.mark.parametrize("packing", ["segment_ids", "cu_seqlens"])
@pytest.mark.parametrize("name", ["ctpo", "gspo", "minpro", "prefix-quantile", "cppo", "gmpo", "ctpo-turn"])
def test_a_packed_call_is_one_graph(name: str, packing: str) -> None:
    objective = preset(name, reduction="seq-mean-token-mean")
    in_one_graph = compiled(objective, "eager")
    compare(objective, in_one_graph, STREAM, **{packing: IDS if packing == "segment_ids" else CU})


@pytest.mark.parametrize("name", ["ctpo", "prefix-quantile"])
def test_forward_and_backward_are_graphs(name: str) -> None:
    """What Inductor is given: both passes, made functional."""
    objective = preset(name)
    compare(objective, compiled(objective, "aot_eager"), PADDED)


def test_inductor_equals_eager() -> None:
    batch = PADDED.to(torch.float32)
    out, grad = run(compiled(preset("ctpo"), "inductor"), batch)  # type: ignore[arg-type]
    expected, expected_grad = run(preset("ctpo"), batch)
    same(out, expected, 1e-4, 1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("backend", ["auto", "compose"])
@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_second_derivatives(name: str, backend: str) -> None:
    """A row of the Hessian by parameters of the policy, against central differences of gradients."""
    g = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 20, generator=g, dtype=torch.float64)
    advantages, mask = (
        torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64),
        torch.rand(4, 20, generator=g) < 0.8,
    )
    features = torch.randn(3, 4, 20, generator=g, dtype=torch.float64)
    objective = preset(name, backend=backend, **SMOOTH[name])

    def gradient(w: Tensor) -> Tensor:
        logps = (
            old
            + torch.einsum("k,kbt->bt", w, features)
            + 0.1 * torch.einsum("k,kbt->bt", w * w, features.abs())
        )
        loss = objective(logps, old, advantages, mask).loss
        return torch.autograd.grad(loss, w, create_graph=True)[0]

    w = (0.01 * torch.randn(3, generator=g, dtype=torch.float64)).requires_grad_()
    (row,) = torch.autograd.grad(gradient(w)[0], w)
    steps = 1e-5 * torch.eye(3, dtype=torch.float64)
    differences = [gradient(w + step)[0] - gradient(w - step)[0] for step in steps]
    torch.testing.assert_close(row, torch.stack(differences).detach() / 2e-5, rtol=1e-6, atol=1e-9)


@ALL
def test_torch_func_equals_autograd(name: str) -> None:
    objective, batch = preset(name), make(drift=0.05)

    turn_ids = turns(batch.mask)

    def loss(logps: Tensor) -> Tensor:
        return objective(logps, batch.old, batch.advantages, batch.mask, turn_ids=turn_ids).loss

    _, expected = run(preset(name, backend="compose"), batch)
    torch.testing.assert_close(torch.func.grad(loss)(batch.logps), expected, rtol=1e-11, atol=1e-15)
    direction = torch.randn(
        batch.logps.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    direction = torch.where(batch.mask, direction, 0.0)
    _, along = torch.func.jvp(loss, (batch.logps,), (direction,))
    torch.testing.assert_close(along, (expected * direction).sum(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in preset_names() if "quantile" not in name])
def test_vmap_over_batches_equals_a_loop(name: str) -> None:
    objective, batches = preset(name), [make(seed=seed) for seed in range(3)]
    each = ((b.logps, b.old, b.advantages, b.mask, turns(b.mask)) for b in batches)
    stacked = [torch.stack(x) for x in zip(*each, strict=True)]
    losses = torch.func.vmap(lambda *x: objective(*x[:4], turn_ids=x[4]).loss)(*stacked)
    torch.testing.assert_close(losses, torch.stack([run(objective, b)[0].loss.detach() for b in batches]))


@pytest.mark.parametrize("backend", ["auto", "compose"])
@pytest.mark.parametrize("name", ["ctpo", "grpo", "gspo", "cispo", "prefix-quantile"])
@pytest.mark.parametrize("which", ["old_logps", "advantages", "response_mask", "weights", "rejection_mask"])
def test_arguments_made_in_inference_mode(name: str, backend: str, which: str) -> None:
    """As a rollout makes them; each in turn."""
    arguments = {
        "old_logps": PADDED.old,
        "advantages": PADDED.advantages,
        "response_mask": PADDED.mask,
        **EXTRAS,
    }
    objective = preset(name, backend=backend)
    grads = []
    for frozen in (False, True):
        with torch.inference_mode(frozen):
            value = arguments[which].clone()
        logps = PADDED.logps.clone().requires_grad_()
        objective(logps, **{**arguments, which: value}).loss.backward()
        grads.append(logps.grad)
    assert torch.equal(*grads)  # type: ignore[arg-type]


def test_autocast_changes_nothing() -> None:
    for backend in ("auto", "compose"):
        objective = preset("ctpo", backend=backend)
        expected, expected_grad = run(objective, PADDED)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, grad = run(objective, PADDED)
        same(out, expected, 0.0)
        assert torch.equal(grad, expected_grad)


@ALL
def test_copies_and_pickles_are_equal_and_give_the_same(name: str) -> None:
    objective = preset(name)
    expected, _ = run(objective, PADDED)
    for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert other == objective
        same(run(other, PADDED)[0], expected, 0.0)


def test_threads_do_not_disturb_each_other() -> None:
    batches = [make(seed=seed, drift=0.05 * (seed % 4 + 1)) for seed in range(8)]
    for backend in ("auto", "compose"):
        objective = preset("ctpo-prefix-gradient", backend=backend)
        expected = [run(objective, batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(run, [objective] * 32, batches * 4))
        for (out, grad), (wanted, wanted_grad) in zip(results, expected * 4, strict=True):
            same(out, wanted, 0.0)
            assert torch.equal(grad, wanted_grad)
