"""Each guard warns once when it should, and never when the hand-over is right."""

from __future__ import annotations

import warnings

import pytest
import torch

from ctpo.adapters.guards import CALLS_EXAMINED, INERT_CALLS, AdapterWarning, Guards, steps
from ctpo.objectives import preset

from . import handover

Hand = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def warned(hands: list[Hand]) -> list[str]:
    """The warnings of the guards of a fresh process without an optimizer, given these calls."""
    steps.count = 0
    guards = Guards()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logps, old, mask in hands:
            out = preset("ctpo")(logps, old, torch.ones(len(logps)), mask)
            guards.look(out, logps, old, mask)
    return [str(each.message) for each in caught if each.category is AdapterWarning]


def hand(seed: int = 0, drift: float = 0.05) -> Hand:
    batch = handover.make(seed, drift)
    return batch.logps, batch.old, batch.mask


def test_silent_when_all_is_well() -> None:
    logps, _, mask = hand()
    first_update = [(logps, logps.clone(), mask)] * (INERT_CALLS - 1)
    assert (
        warned([*first_update, *(hand(seed) for seed in range(8)), *[(logps, logps.clone(), mask)] * 400])
        == []
    )


def test_inert() -> None:
    logps, _, mask = hand()
    (message,) = warned([(logps, logps.clone(), mask)] * (3 * INERT_CALLS))
    assert "every ratio was 1" in message


def trained(updates: list[tuple[list[Hand], float, float]]) -> list[str]:
    """The warnings of a process that trains: the calls of each update, their advantage, and the learning rate after."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    guards = Guards()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for hands, advantage, rate in updates:
            for logps, old, mask in hands:
                out = preset("ctpo")(logps, old, torch.full((len(logps),), advantage), mask)
                guards.look(out, logps, old, mask)
            optimizer.param_groups[0]["lr"] = rate
            weight.grad = torch.ones(1)
            optimizer.step()
    return [str(each.message) for each in caught if each.category is AdapterWarning]


def test_inert_counts_updates() -> None:
    logps, _, mask = hand()
    one, moved = (logps, logps.clone(), mask), hand(1)
    inert = ([one, one], 1.0, 1e-3)
    (message,) = trained([inert] * 4)
    assert "every ratio was 1 in 4 updates" in message
    assert len(trained([([one] * CALLS_EXAMINED, 1.0, 1e-3), *[inert] * 3])) == 1
    assert trained([inert] * 3) == []
    assert trained([([one] * 200, 1.0, 1e-3), ([moved], 1.0, 1e-3), *[inert] * 20]) == []


def test_updates_that_change_no_weights_are_not_inert() -> None:
    logps, _, mask = hand()
    one = (logps, logps.clone(), mask)
    assert trained([([one], 1.0, 0.0)] * 20) == []
    assert trained([([one], 0.0, 1e-3)] * 20) == []


@pytest.mark.parametrize("empty", [True, False])
def test_inert_does_not_count_calls_without_tokens(empty: bool) -> None:
    logps, _, mask = hand()
    hands = [(logps, logps.clone(), mask & (torch.zeros_like(mask) if empty else mask))] * (2 * INERT_CALLS)
    assert len(warned(hands)) == (0 if empty else 1)


def test_anchor_of_another_policy() -> None:
    logps, old, mask = hand(drift=1.5)
    (message,) = warned([(logps, old, mask)] * 3)
    drift = (logps - old)[mask].square().mean().sqrt()
    assert f"by {drift:.2f} nats per token" in message


@pytest.mark.parametrize("who", ["policy", "anchor"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.filterwarnings("ignore:log-probs arrived:RuntimeWarning")
def test_bf16(who: str, stored: torch.dtype) -> None:
    """Also when they were rounded before, and arrive in float32."""
    logps, old, mask = hand()
    rounded = {"policy": logps, "anchor": old}
    rounded[who] = rounded[who].bfloat16().to(stored)
    (message,) = warned([(rounded["policy"], rounded["anchor"], mask)] * 3)
    assert f"{who}'s" in message
    assert "bfloat16" in message


def placed(shift: int, prompt: int = 4) -> Hand:
    """Whole rows with a prompt before the response; the mask moved by `shift`."""
    logps, old, mask = (torch.nn.functional.pad(each, (prompt, 2)) for each in hand())
    return logps, old, mask.roll(shift, -1)


@pytest.mark.parametrize("shift", [-1, 1])
def test_mask_beside_the_tokens(shift: int) -> None:
    (message,) = warned([placed(shift)] * 3)
    assert "one token beside" in message


def test_mask_in_place() -> None:
    assert warned([placed(0)] * 3) == []


def test_a_response_cut_short_is_no_shift() -> None:
    """Only one end differs: a truncated response, not a mask off by one."""
    logps, old, mask = placed(0)
    cut = mask.clone()
    last = mask.shape[-1] - 1 - mask.byte().flip(-1).argmax(-1)
    cut[torch.arange(len(cut)), last] = False
    assert warned([(logps, old, cut)] * 3) == []


def test_one_row_in_place_clears_the_mask() -> None:
    shifted, fine = placed(1), placed(0)
    both = tuple(torch.cat([a[:3], b[:1]]) for a, b in zip(shifted, fine, strict=True))
    assert warned([both] * 3) == []  # type: ignore[list-item]
