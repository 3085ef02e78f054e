"""Target policies that make the bias of a family large at a given distance from b."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.lab.theory.families import FAMILIES
from ctpo.lab.theory.moments import expectation
from ctpo.lab.theory.policies import Policy
from ctpo.lab.theory.problems import Problem
from ctpo.objectives.checks import choice

_MOST_TRAJECTORIES: Final = 2**16
"""The search keeps the autograd graph of a whole enumeration, some 100 bytes per trajectory and step."""

_STEPS: Final = 30
"""A search ends after a handful of steps. The limit stops one that goes back and forth between two corners."""


def worst_direction(problem: Problem, distance: float, start: Tensor, against: str) -> Problem:
    """Return a problem whose target policy makes the bias ‖E_b ĝ − ∇J(π)‖ of a family large.

    The logits of π are those of b plus distance·s, with signs s ∈ {−1, 1}. Each step moves to the signs of the
    gradient of the bias, and the largest bias on the way is returned. This is a local search, so the result is a lower
    bound of the worst case.

    Args:
        problem: gives behaviour, reward and advantage; its target is replaced.
        distance: the change of each logit.
        start: the signs to start from, [G, V].
        against: the name of the family.

    Raises:
        UserError: if the family is unknown, or there are more than 2^16 trajectories.
    """
    try:
        estimate = FAMILIES[choice("against", against, FAMILIES)].coefficients
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from None
    if problem.tree.trajectories > _MOST_TRAJECTORIES:
        raise UserError(
            f"policy='adversarial' searches up to {_MOST_TRAJECTORIES:,} trajectories, not "
            f"{problem.tree.trajectories:,}; shorten the horizon"
        )
    best, largest, signs = problem, -1.0, start
    for _ in range(_STEPS):
        logits = (problem.behaviour.logits + distance * signs).requires_grad_()
        candidate = dataclasses.replace(problem, target=Policy(logits, problem.target.sharing))
        bias = (expectation(candidate, estimate) - candidate.gradient).square().sum()
        (uphill,) = torch.autograd.grad(bias, logits)
        if bias.item() > largest:
            largest = bias.item()
            best = dataclasses.replace(problem, target=Policy(logits.detach(), problem.target.sharing))
        following = torch.where(uphill == 0, signs, uphill.sign())
        if bool((following == signs).all()):
            break
        signs = following
    return best
