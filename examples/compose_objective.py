"""Compose a new objective from parts, and take one loss and gradient of it.

    python examples/compose_objective.py

The objective weighs a token by the geometric mean of the ratios up to it, so the weight does not grow with the length
of the response. Whether a token is clipped depends on another statistic: the product of the ratios up to it, in limits
that widen with the square root of the position.
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
    ratio=PrefixMeanRatio(),  # the weight of a token
    # Which tokens are clipped. The limits are in nats and grow with √t.
    trust_region=LogBand(log_low=0.04, log_high=0.06, power=0.5, statistic=CumulativeRatio()),
    surrogate=MinClip(),
    reduction=Reduction("seq-mean-token-mean"),
)


def main() -> None:
    """Print one loss and its statistics for random log-probs of 8 responses with up to 20 tokens."""
    torch.manual_seed(0)
    logps = -torch.rand(8, 20, requires_grad=True)
    old_logps = (logps.detach() + 0.2 * torch.randn(8, 20)).clamp(max=0.0)  # of the policy that sampled
    response_mask = torch.arange(20) < torch.randint(5, 21, (8, 1))
    advantages = rloo(rewards=torch.randint(0, 2, (8,)).float(), group=4)
    out = objective(logps, old_logps, advantages, response_mask)
    out.loss.backward()
    print(f"loss {out.loss.item():+.4f}")
    for name, value in out.stats.items():
        print(f"{name:>20} {value.item():.4f}")


if __name__ == "__main__":
    main()
