"""Expected rewards, action values and policy gradients, by recursion over the levels of the tree.

Nothing here enumerates estimators, so these figures are an independent check of those that do.
"""

from __future__ import annotations

from torch import Tensor

from ctpo.lab.theory.policies import Policy


def action_values(policy: Policy, reward: Tensor) -> list[Tensor]:
    """Return Q(prefix, a), the expected reward if the policy draws the rest; one tensor [V^t, V] per level."""
    value, levels = reward, []
    for probs in reversed(policy.probs):
        levels.append(value.reshape(probs.shape))
        value = (probs * levels[-1]).sum(-1)
    return levels[::-1]


def expected_reward(policy: Policy, reward: Tensor) -> Tensor:
    """Return J = E_π[R], a scalar."""
    return (policy.probs[0] * action_values(policy, reward)[0]).sum()


def advantages(policy: Policy, reward: Tensor) -> list[Tensor]:
    """Return A(prefix, a) = Q(prefix, a) − Σ_a' π(a') Q(prefix, a'); one tensor [V^t, V] per level."""
    values = action_values(policy, reward)
    return [q - (p * q).sum(-1, keepdim=True) for p, q in zip(policy.probs, values, strict=True)]


def reach(policy: Policy) -> list[Tensor]:
    """Return the probability of every prefix; one tensor [V^t] per level."""
    levels = [policy.probs[0].new_ones(1)]
    for probs in policy.probs[:-1]:
        levels.append((levels[-1].unsqueeze(-1) * probs).reshape(-1))
    return levels


def policy_gradient(target: Policy, states: Policy, actions: Policy, values: list[Tensor]) -> Tensor:
    """Return Σ_t E[∇ log π(a_t|s_t) · value(s_t, a_t)], [G, V].

    With states = actions = π and values = Q^π this is ∇J(π).

    Args:
        target: π, whose log-probs are differentiated.
        states: the policy that draws the prefix s_t.
        actions: the policy that draws a_t.
        values: the value of every edge, one tensor [V^t, V] per level.
    """
    weights = [
        d.unsqueeze(-1) * p * value for d, p, value in zip(reach(states), actions.probs, values, strict=True)
    ]
    return target.gradient(weights)


def return_to_go(policy: Policy, terms: list[Tensor]) -> list[Tensor]:
    """Return Σ_{t≥s} E_π[terms_t | edge at s], for every level s; one tensor [V^s, V] per level."""
    levels: list[Tensor] = []
    for probs, own in zip(reversed(policy.probs), reversed(terms), strict=True):
        later = levels[-1] if levels else None
        if later is None:
            levels.append(own)
        else:
            following = (policy.probs[len(terms) - len(levels)] * later).sum(-1)
            levels.append(own + following.reshape(probs.shape))
    return levels[::-1]
