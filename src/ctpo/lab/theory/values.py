"""Returns, values and gradients by recursion over the levels of the tree, without enumerating estimators."""

from __future__ import annotations

from torch import Tensor

from ctpo.lab.theory.policies import Policy


def action_values(policy: Policy, reward: Tensor) -> list[Tensor]:
    """Q(prefix, a): the expected reward when the rest is drawn from the policy, [V^t, V] a level."""
    value, levels = reward, []
    for probs in reversed(policy.probs):
        levels.append(value.reshape(probs.shape))
        value = (probs * levels[-1]).sum(-1)
    return levels[::-1]


def expected_reward(policy: Policy, reward: Tensor) -> Tensor:
    """J = E_π[R], a scalar."""
    return (policy.probs[0] * action_values(policy, reward)[0]).sum()


def advantages(policy: Policy, reward: Tensor) -> list[Tensor]:
    """A(prefix, a) = Q(prefix, a) − Σ_a' π(a') Q(prefix, a'), [V^t, V] a level."""
    values = action_values(policy, reward)
    return [q - (p * q).sum(-1, keepdim=True) for p, q in zip(policy.probs, values, strict=True)]


def reach(policy: Policy) -> list[Tensor]:
    """Probability of every prefix, [V^t] a level."""
    levels = [policy.probs[0].new_ones(1)]
    for probs in policy.probs[:-1]:
        levels.append((levels[-1].unsqueeze(-1) * probs).reshape(-1))
    return levels


def policy_gradient(target: Policy, states: Policy, actions: Policy, values: list[Tensor]) -> Tensor:
    """Σ_t E[∇ log π(a_t|s_t) · value(s_t, a_t)], [G, V].

    Args:
        target: π, whose log-probs are differentiated.
        states: policy that draws the prefix s_t.
        actions: policy that draws a_t.
        values: [V^t, V] a level.

    Returns:
        With states = actions = π and values = Q^π, ∇J(π).
    """
    weights = [
        d.unsqueeze(-1) * p * value for d, p, value in zip(reach(states), actions.probs, values, strict=True)
    ]
    return target.gradient(weights)


def return_to_go(policy: Policy, terms: list[Tensor]) -> list[Tensor]:
    """Σ_{t≥s} E_π[terms_t | edge at s], [V^t, V] a level."""
    levels: list[Tensor] = []
    for probs, own in zip(reversed(policy.probs), reversed(terms), strict=True):
        later = levels[-1] if levels else None
        if later is None:
            levels.append(own)
        else:
            following = (policy.probs[len(terms) - len(levels)] * later).sum(-1)
            levels.append(own + following.reshape(probs.shape))
    return levels[::-1]
