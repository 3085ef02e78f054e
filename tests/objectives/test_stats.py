"""Stats and details against direct computation; the imports of the room."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

import ctpo.objectives
from ctpo.objectives import position_profile, preset, preset_names

from .batches import make, run

BACKENDS = pytest.mark.parametrize("backend", ["auto", "compose"])


@BACKENDS
def test_stats_of_ctpo(backend: str) -> None:
    batch = make(drift=0.1)
    batch.old[0, int(batch.mask[0].nonzero()[1])] = torch.nan
    out, grad = run(preset("ctpo", backend=backend), batch)
    kept = batch.mask & batch.old.isfinite()
    d = torch.where(kept, batch.logps - batch.old, 0.0)
    x = d.cumsum(-1)[kept]
    t = batch.mask.cumsum(-1)[kept].sqrt()
    a = batch.advantages[:, None].expand_as(d)[kept]
    d, n, total = d[kept], int(kept.sum()), int(batch.mask.sum())
    w = x.clamp(max=10).exp()
    expected = {
        "clip_fraction_high": ((a > 0) & (x > 0.05 * t)).sum() / total,
        "clip_fraction_low": ((a < 0) & (x < -0.025 * t)).sum() / total,
        "clip_fraction_dual": ((a < 0) & (x > 0.05 * t)).sum() / total,
        "log_ratio_mean": x.mean(),
        "log_ratio_std": x.std(correction=0),
        "log_ratio_min": x.min(),
        "log_ratio_max": x.max(),
        "ess": w.sum() ** 2 / (n * (w**2).sum()),
        "kl_k1": -d.mean(),
        "kl_k2": (d**2).mean() / 2,
        "kl_k3": (d.exp() - 1 - d).mean(),
        "neutralised": 1,
        "nonfinite": 1,
        "saturated": 0,
        "positive_logps": (batch.mask & ((batch.logps > 1e-3) | (batch.old > 1e-3))).sum(),
        "tokens": total,
        "sequences": int(batch.mask.any(-1).sum()),
    }
    expected["clip_fraction"] = expected["clip_fraction_high"] + expected["clip_fraction_low"]
    assert out.stats.keys() == expected.keys()
    for name, value in expected.items():
        assert out.stats[name].item() == pytest.approx(float(value), rel=1e-6), name
    gone = (grad[kept] == 0) & (a != 0)
    assert gone.sum().item() / total == pytest.approx(
        float(expected["clip_fraction"] + expected["clip_fraction_dual"]), rel=1e-6
    )


@BACKENDS
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extremes_are_those_of_usable_tokens(backend: str, sign: float) -> None:
    """Statistics of one sign, with masked tokens before and between them."""
    logps = torch.zeros(1, 6, dtype=torch.float64)
    old = logps - sign * torch.tensor([[9.0, 0.5, 9.0, 0.25, 0.125, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[0, 1, 0, 1, 1, 0]]).bool()
    out = preset("ctpo", backend=backend)(logps, old, torch.ones(1, dtype=torch.float64), mask)
    extremes = sorted((out.stats["log_ratio_min"].item(), out.stats["log_ratio_max"].item()), key=abs)
    assert extremes == [sign * 0.5, sign * 0.875]


@pytest.mark.parametrize("name", preset_names())
def test_stats_are_detached_scalars(name: str) -> None:
    out, _ = run(preset(name), make().to(torch.float32))
    for value in out.stats.values():
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert not value.requires_grad


@pytest.mark.parametrize("name", ["ctpo", "grpo", "gspo"])
@BACKENDS
def test_a_spread_of_nothing_far_from_zero_is_zero(name: str, backend: str) -> None:
    """Sums of squares in float32 would leave 1e-3 of a log ratio of 9; the stats are exact."""
    logps = torch.zeros(3, 1)
    out = preset(name, backend=backend)(logps, logps - 9.1, torch.ones(3), torch.ones(3, 1, dtype=torch.bool))
    assert out.stats["log_ratio_mean"].item() == pytest.approx(9.1, rel=1e-7)
    assert out.stats["log_ratio_std"].item() == 0.0
    assert out.stats["ess"].item() == pytest.approx(1.0, rel=1e-6)


@BACKENDS
def test_a_small_spread_far_from_zero_keeps_its_digits(backend: str) -> None:
    step = 2.0**-20  # the spacing of float32 between 8 and 16
    old = -9.0 - step * torch.arange(4.0)[:, None]
    out = preset("ppo", backend=backend)(
        torch.zeros(4, 1), old, torch.ones(4), torch.ones(4, 1, dtype=torch.bool)
    )
    assert out.stats["log_ratio_std"].item() == pytest.approx(step * 1.25**0.5, rel=1e-6)


@BACKENDS
def test_ess_of_weights_that_underflow(backend: str) -> None:
    """Products that fall to e^-915: float64 holds neither their squares nor the smallest of them."""
    old = torch.cat([torch.full((60,), 15.0), torch.zeros(2), torch.tensor([15.0])])[None]
    everywhere = torch.ones(1, 63, dtype=torch.bool)
    out = preset("ctpo", backend=backend)(torch.zeros(1, 63), old, torch.ones(1), everywhere)
    x = -old.double().cumsum(-1)
    w = (x - x.max()).exp()
    assert out.stats["ess"].item() == pytest.approx((w.sum() ** 2 / (63 * (w**2).sum())).item(), rel=1e-6)


@BACKENDS
def test_ess_of_equal_weights_that_underflow(backend: str) -> None:
    old, everywhere = torch.full((1, 63), 15.0), torch.ones(1, 63, dtype=torch.bool)
    out = preset("sequence", backend=backend)(torch.zeros(1, 63), old, torch.ones(1), everywhere)
    assert out.stats["ess"].item() == pytest.approx(1.0, rel=1e-6)


@BACKENDS
def test_what_is_no_log_prob_is_counted(backend: str) -> None:
    """Probabilities, logits: above 0 in either argument, under the mask alone; not rounding about 0."""
    logps = torch.tensor([[-1.0, 0.3, 1e-6, 5.0, -2.0, torch.inf]])
    old = torch.tensor([[-1.1, 0.2, 0.0, 5.0, 0.4, -1.0]])
    mask = torch.tensor([[1, 1, 1, 0, 1, 1]]).bool()
    out = preset("ctpo", backend=backend)(logps, old, torch.ones(1), mask)
    assert out.stats["positive_logps"].item() == 3


def test_details_and_profile() -> None:
    batch = make(rows=9, length=40, drift=0.1)
    logps = batch.logps.requires_grad_()
    out = preset("ctpo")(logps, batch.old, batch.advantages, batch.mask, details=True)
    details = out.details
    assert details is not None
    position = batch.mask.cumsum(-1)
    assert torch.equal(details.position[batch.mask], position[batch.mask])
    assert torch.equal(details.kept, batch.mask)
    n = batch.mask.sum()
    for code, part in ((1, "high"), (-1, "low"), (2, "dual")):
        assert (details.clip == code).sum() / n == pytest.approx(out.stats[f"clip_fraction_{part}"].item())
    c = torch.where(batch.mask, batch.logps - batch.old, 0.0).cumsum(-1)
    torch.testing.assert_close(details.log_weight, torch.where(batch.mask, c, 0.0).detach())

    profile = position_profile(details, length=20, bins=4)
    assert profile["edge"].tolist() == [5, 10, 15, 20]
    for b in range(4):
        inside = batch.mask & (position > 5 * b) & ((position <= 5 * (b + 1)) | (b == 3))
        x = c[inside].detach()
        assert profile["count"][b] == inside.sum()
        assert profile["log_ratio_mean"][b].item() == pytest.approx(x.mean().item())
        assert profile["log_ratio_std"][b].item() == pytest.approx(x.std(correction=0).item())
        clipped = (details.clip[inside].abs() == 1).double().mean()
        assert profile["clip_fraction"][b].item() == pytest.approx(clipped.item())
        assert profile["dual"][b] == (details.clip[inside] == 2).sum()
        assert profile["high"][b] + profile["low"][b] == profile["clipped"][b]


def test_the_room_imports_torch_and_the_standard_library_only() -> None:
    folder = Path(ctpo.objectives.__file__).parent
    allowed = {"torch", *sys.stdlib_module_names}
    # The package's own __init__ imports its trainer on first use only; tests/test_walls.py runs that.
    # `ctpo.old_names` is plain Python.
    files = [*folder.glob("**/*.py")]
    assert len(files) > 15
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, file
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed or name.startswith(
                    ("ctpo.objectives", "ctpo.old_names")
                ), f"{file.name}: {name}"


def test_a_profile_of_one_value_and_of_empty_bins() -> None:
    """Three equal values have a spread of 0 although their mean square less their squared mean is −9e-16."""
    logps = torch.zeros(3, 1, dtype=torch.float64)
    mask = torch.ones(3, 1, dtype=torch.bool)
    out = preset("ctpo")(logps, logps - 1.69, torch.ones(3, dtype=torch.float64), mask, details=True)
    assert out.details is not None
    profile = position_profile(out.details, length=8, bins=2)
    assert profile["log_ratio_std"].tolist() == [0.0, 0.0]
    assert profile["clip_fraction"].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="length: 0"):
        position_profile(out.details, length=0, bins=2)
