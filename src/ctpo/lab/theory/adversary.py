"""Target policies that make a family's bias large at a given distance."""

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
"""The search keeps the graph of a whole enumeration, some 100 bytes a trajectory and step."""

_STEPS: Final = 30
"""Sign steps end at a corner of the box after a handful; the limit stops two corners that point at each other."""


def worst_direction(problem: Problem, distance: float, start: Tensor, against: str) -> Problem:
    """The problem with π's logits = b's + distance·s, s ∈ {−1, 1}, where ‖E_b ĝ − ∇J(π)‖ is largest on the way.

    Steps to the corner that the gradient of the bias points at, and keeps the best corner seen: a local search, so a
    lower bound of the worst.

    Args:
        problem: behaviour, reward and advantage; its target is replaced.
        distance: largest change of a logit.
        start: signs to start from, [G, V].
        against: name of the family.

    Raises:
        UserError: unknown family, or more than 2^16 trajectories.
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
