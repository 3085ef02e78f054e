"""Whether the Triton path may be taken unasked on a device: it runs there and agrees with the composition.

A kernel can fail where torch works (no C compiler for the launcher, a GPU the compiler does not know, a
compiler's bug), so the first call on a device checks, once a process: some seconds of compilation and one
read. A failure is a warning, and torch's operations are taken instead.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives import triton_path
from ctpo.objectives.compose import Output, compose
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.plan import Plan
from ctpo.objectives.ratios import CumulativeRatio
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import MinClip
from ctpo.objectives.tokens import sanitise
from ctpo.objectives.trust_regions import LogBand

ROWS: Final = 160
"""With three tiles a row, more programs than a GPU runs at once: the last to arrive is then not the first."""

LENGTH: Final = 5000
TOLERANCE: Final = 1e-4
"""Of float32 sums; a wrong offset, bound or reduction misses by far more."""


@lru_cache(maxsize=16)
def works(device: torch.device) -> bool:
    """Whether a fixed batch gets the composition's loss, gradient and figures on this device."""
    batch = _batch(device)
    region, reduction = LogBand(0.025, 0.05, 0.05, 0.5), Reduction("seq-mean-token-mean")
    plan = Plan(CumulativeRatio(), region.bases, MinClip())
    try:
        with torch.enable_grad():
            got = _with_gradient(triton_path.run(plan, reduction, batch), batch.logps)
            tokens = sanitise(batch.logps, batch.old_logps, batch.mask, Padded())
            factor = reduction.factors(batch.mask, Padded(), None, None, torch.float32)
            signal = torch.where(tokens.kept, batch.advantages[:, None], torch.zeros_like(tokens.logps))
            wanted = compose(CumulativeRatio(), region, MinClip(), tokens, signal, factor)
            expected = _with_gradient(wanted, batch.logps)
        for name, value in expected.items():
            near = TOLERANCE * float(value.abs().max())
            if not torch.allclose(got[name], value, rtol=TOLERANCE, atol=near):  # false for NaN
                raise ArithmeticError(f"{name} differs from the composition")
    except Exception as error:  # whatever goes wrong, there is another path
        warnings.warn(
            f"the Triton path is not used on {device} ({type(error).__name__}: {str(error)[:300]}); "
            "torch's operations are. Pass backend='compose' or 'compile' to silence this.",
            RuntimeWarning,
            stacklevel=4,
        )
        return False
    return True


def _batch(device: torch.device) -> triton_path.Batch:
    """Drifting rows without random numbers, with holes, an empty row and unusable log-probs."""
    at = torch.arange(ROWS * LENGTH, device=device).reshape(ROWS, LENGTH)
    logps = -((at * 7919) % 1009).float() / 500
    old = logps - 0.02 * (((at * 104729) % 2003).float() / 1001 - 1)
    old[:, 100::1000], old[:, 2000::1500] = torch.nan, -9999.0
    mask = (at * 31) % 10 < 8
    mask[3] = False
    advantages = torch.arange(ROWS, device=device).float() / ROWS - 0.5
    return triton_path.Batch(logps.requires_grad_(), old, advantages, mask)


def _with_gradient(out: Output, logps: Tensor) -> dict[str, Tensor]:
    (grad,) = torch.autograd.grad(out.loss, logps)
    return {"loss": out.loss.detach(), "gradient": grad, "token_loss": out.token_loss.detach(), **out.stats}
