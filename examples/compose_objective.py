"""Compose a new objective from parts: length-normalised weights, gated by accumulated drift.

python examples/compose_objective.py
"""

from __future__ import annotations

import torch

from ctpo.objectives import Objective
from ctpo.objectives.advantages import rloo
from ctpo.objectives.ratios import CumulativeRatio, PrefixMeanRatio
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import MinClip
from ctpo.objectives.trust_regions import LogBand

objective = Objective(
    ratio=PrefixMeanRatio(),  # what a token weighs
    trust_region=LogBand(log_low=0.1, log_high=0.2, power=0.5, statistic=CumulativeRatio()),  # what decides
    surrogate=MinClip(),
    reduction=Reduction("seq-mean-token-mean"),
)


def main() -> None:
    """One loss and gradient on random log-probs."""
    torch.manual_seed(0)
    logps = -torch.rand(8, 20, requires_grad=True)
    old_logps = logps.detach() + 0.1 * torch.randn(8, 20)
    mask = torch.arange(20) < torch.randint(5, 21, (8, 1))
    advantages = rloo(rewards=torch.randint(0, 2, (8,)).float(), group=4)
    out = objective(logps, old_logps, advantages, mask)
    out.loss.backward()
    print(f"loss {out.loss.item():+.4f}")
    for name, value in out.stats.items():
        print(f"{name:>20} {value.item():.4f}")


if __name__ == "__main__":
    main()
