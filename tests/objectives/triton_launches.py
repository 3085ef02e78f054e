"""What a call of the Triton path launches, reads and depends on. Run by test_triton.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ctpo.objectives import preset, triton_launch, triton_trust

from .batches import run, same
from .triton_values import DEVICE, drifting

WITHOUT_A_KERNEL = {"empty", "unbind", "detach", "view", "alias"}


class Launches(TorchDispatchMode):
    """Names of everything that would run on a device: kernels, and torch's operations but for allocations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        launch = triton_launch.Tiles.launch

        def counted(tiles: Any, kernel: str, *args: Any, **constants: Any) -> None:
            self.found.append(kernel)
            with _disable_current_modes():  # the interpreter moves tensors about
                launch(tiles, kernel, *args, **constants)

        monkeypatch.setattr(triton_launch.Tiles, "launch", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name not in WITHOUT_A_KERNEL:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "tile", "first"),
    [
        ("ctpo", 16, "scan_kernel"),
        ("ctpo-prefix-gradient", 16, "scan_kernel"),
        ("gspo", 64, "zero_"),
        ("minpro", 64, "zero_"),
        ("cispo", 64, "zero_"),
        ("dr-grpo", 64, "zero_"),
    ],
)
def test_three_launches_and_no_read(
    name: str, tile: int, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics, weights, rejection, a mask of numbers and the counts included."""
    monkeypatch.setattr(triton_launch, "TILE", tile)
    batch = drifting(20)
    objective, logps = preset(name, backend="triton"), batch.logps.clone().requires_grad_()
    mask, seed = batch.mask.float(), torch.ones((), dtype=torch.float64, device=DEVICE)
    # Reading the values of a mask of numbers is free on the CPU alone, and done there alone.
    monkeypatch.setattr("ctpo.objectives.checks.mask_values", lambda name, mask: None)
    launches = Launches(monkeypatch)
    with launches:
        out = objective(
            logps, batch.old, batch.advantages, mask, loss_mask=mask, weights=batch.advantages, num_tokens=9
        )  # fmt: skip
        forward = list(launches.found)
        out.loss.backward(seed)  # given, for torch would fill one
    assert forward == [first, "terms_kernel"]
    assert launches.found == [*forward, "gradient_kernel"]


def test_the_same_bits_whatever_the_order_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last to arrive reduces, and it may be any; on a GPU, twenty runs in whatever order they fall."""
    monkeypatch.setattr(triton_launch, "TILE", 16)
    batch = drifting(40)
    expected, expected_grad = run(preset("ctpo", backend="triton"), batch)
    if DEVICE == "cpu":
        from triton.runtime.interpreter import interpreter_builder as builder

        place = builder.set_grid_idx
        monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: place(builder.grid_dim[0] - 1 - x, y, z))
    for _ in range(20 if DEVICE == "cuda" else 1):
        out, grad = run(preset("ctpo", backend="triton"), batch)
        same(out, expected, 0.0)
        assert torch.equal(grad, expected_grad)


def test_two_backwards_of_one_graph() -> None:
    batch = drifting(20)
    logps = batch.logps.clone().requires_grad_()
    out = preset("ctpo", backend="triton")(logps, batch.old, batch.advantages, batch.mask)
    (once,) = torch.autograd.grad(out.loss, logps, retain_graph=True)
    (twice,) = torch.autograd.grad(2 * out.loss, logps)
    torch.testing.assert_close(2 * once, twice)


def test_second_derivatives_are_refused() -> None:
    batch = drifting(9)
    logps = batch.logps.clone().requires_grad_()
    out = preset("ctpo", backend="triton")(logps, batch.old, batch.advantages, batch.mask)
    (grad,) = torch.autograd.grad(out.loss, logps, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


@pytest.fixture
def _fresh_trust(monkeypatch: pytest.MonkeyPatch) -> Any:
    if DEVICE == "cpu":
        monkeypatch.setattr(triton_trust, "ROWS", 5)  # the interpreter is slow
    triton_trust.works.cache_clear()
    yield
    triton_trust.works.cache_clear()


@pytest.mark.usefixtures("_fresh_trust")
def test_a_device_is_trusted_when_it_agrees() -> None:
    assert triton_trust.works(torch.device(DEVICE))


@pytest.mark.usefixtures("_fresh_trust")
@pytest.mark.parametrize("fault", ["fails", "forgets"])
def test_a_device_is_not_trusted_when_a_kernel_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = triton_launch.Tiles.launch

    def faulty(tiles: Any, kernel: str, *args: Any, **constants: Any) -> None:
        if fault == "fails":
            raise OSError("no C compiler")
        launch(tiles, kernel, *args, **constants)
        if kernel == "scan_kernel":
            args[12].zero_()  # the sums of the tiles

    monkeypatch.setattr(triton_launch.Tiles, "launch", faulty)
    message = "no C compiler" if fault == "fails" else "differs from the composition"
    with pytest.warns(RuntimeWarning, match=message):
        assert not triton_trust.works(torch.device(DEVICE))
