"""Says where the C pass of the installed package comes from, and how far its results are from the definition in torch.

It runs where the package was installed, so it imports nothing of this folder. PATH is emptied, so no compiler is found:
what runs came with the package. `none` is right for the wheel without the C pass, which then runs the definition.
"""

from __future__ import annotations

import os
import platform

os.environ["PATH"] = ""
os.environ.pop("CC", None)
os.environ["CTPO_CACHE_DIR"] = os.devnull  # a file, so nothing cached is found either

import torch

from ctpo.objectives import preset, preset_names
from ctpo.objectives.cpu import library

LARGEST = {torch.float32: 4e-6, torch.float64: 4e-14}
"""The largest difference that is allowed, as a share of the largest entry: twice the largest of four libraries."""


def results(name: str, backend: str, dtype: torch.dtype) -> torch.Tensor:
    """The loss and the gradient of one objective on a batch that has drifted."""
    torch.manual_seed(0)
    old_logps = -0.6 - 3 * torch.rand(16, 300, dtype=dtype)
    logps = (old_logps + 0.1 * torch.randn_like(old_logps)).requires_grad_()
    response_mask = torch.rand(16, 300) < 0.9
    advantages = torch.randn(16, dtype=dtype)
    out = preset(name, backend=backend)(logps, old_logps, advantages, response_mask)
    (gradient,) = torch.autograd.grad(out.loss, logps)
    return torch.cat([out.loss.detach().reshape(1), gradient.flatten()])


def main() -> None:
    """Print one line; a difference that is too large is an error."""
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    if not library.available():
        results("ctpo", "auto", torch.float32)
        print(f"{machine}: C pass none")
        return
    known, worst = set(), dict.fromkeys(LARGEST, 0.0)
    for name in preset_names():
        for dtype in LARGEST:
            try:
                fast = results(name, "native", dtype)
            except ValueError:  # the C pass does not know this objective
                continue
            slow = results(name, "compose", dtype)
            worst[dtype] = max(worst[dtype], ((fast - slow).abs().max() / slow.abs().max()).item())
            known.add(name)
    apart = ", ".join(f"{dtype} {difference:.1e}" for dtype, difference in worst.items())
    print(
        f"{machine}: C pass {library.library()._name}; {len(known)} objectives; largest differences {apart}"
    )
    assert known
    assert all(worst[dtype] <= LARGEST[dtype] for dtype in LARGEST)


if __name__ == "__main__":
    main()
