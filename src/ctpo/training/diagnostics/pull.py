"""The coefficient of each token's gradient, split into a signal and a pull that does not depend on the reward.

A token's term moves the policy along g·∇log π(a_t), with the coefficient g = A·w. The weight w that clipping leaves
may depend on the sign of A: w₊ for a positive advantage and w₋ for a negative one. Now let the rewards of a group be
dealt out to its responses at random, so that they say nothing. If the advantages of the group add up to 0, the means of
their positive and of their negative parts are both m/2, where m is the mean of |A|. The coefficient then has the mean

    p = (m/2)·(w₊ − w₋),

which is the pull: below 0 beyond an upper bound that cuts A > 0, and above 0 below a lower bound that cuts A < 0. So it
takes the token's ratio back to 1 whatever the reward says. The rest, s = g − p, is the signal. Its mean over all ways
to deal out the rewards is 0.
"""

from __future__ import annotations

from torch import Tensor


def null_sizes(advantages: Tensor, group: int) -> Tensor | None:
    """[N] or [N, K] the mean |A| over those responses of a response's group whose advantage is not 0.

    None if the rollout batch does not hold whole groups.

    Args:
        advantages: [N] of all processes, or [N, K] of their turns. The responses to one prompt are contiguous.
        group: the number of responses per prompt.
    """
    if len(advantages) % group:
        return None
    sizes = advantages.abs().reshape(-1, group, *advantages.shape[1:])
    mean: Tensor = sizes.sum(dim=1) / (sizes > 0).sum(dim=1).clamp(min=1)
    return mean.repeat_interleave(group, dim=0)


def signal_and_pull(
    advantages: Tensor, left: Tensor, other: Tensor, null_size: Tensor
) -> tuple[Tensor, Tensor]:
    """The signal s and the pull p of each token, in units of the advantage; they add up to A·w.

    Args:
        advantages: A, not 0.
        left: w, the weight that clipping leaves with this sign of A.
        other: the weight that it would leave with the other sign.
        null_size: m, the mean of |A| if the rewards were dealt out at random.
    """
    pull = null_size / 2 * advantages.sign() * (left - other)
    return advantages * left - pull, pull
