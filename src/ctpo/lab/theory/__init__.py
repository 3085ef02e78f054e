"""Exact bias and variance of off-policy gradient estimators on policies small enough to enumerate."""

from ctpo.lab.theory.analysis import Analysis, Crossing, Row, analyse
from ctpo.lab.theory.critic import CriticRow, critic_rows
from ctpo.lab.theory.families import FAMILIES, Estimator
from ctpo.lab.theory.policies import SHARINGS, Policy, Sharing
from ctpo.lab.theory.presets import objective_estimator
from ctpo.lab.theory.problems import ADVANTAGES, REWARDS, Problem
from ctpo.lab.theory.pull import Pull, pulls
from ctpo.lab.theory.setups import POLICIES, Setup
from ctpo.lab.theory.tables import read_tables
from ctpo.lab.theory.trees import Tree

__all__ = [
    "ADVANTAGES",
    "FAMILIES",
    "POLICIES",
    "REWARDS",
    "SHARINGS",
    "Analysis",
    "CriticRow",
    "Crossing",
    "Estimator",
    "Policy",
    "Problem",
    "Pull",
    "Row",
    "Setup",
    "Sharing",
    "Tree",
    "analyse",
    "critic_rows",
    "objective_estimator",
    "pulls",
    "read_tables",
]
