"""Exact bias and variance of off-policy gradient estimators on policies small enough to enumerate."""

from ctpo.theory.analysis import Analysis, Crossing, Row, analyse
from ctpo.theory.families import FAMILIES, Estimator
from ctpo.theory.files import read_tables
from ctpo.theory.library import objective_estimator
from ctpo.theory.policies import SHARINGS, Policy, Sharing
from ctpo.theory.problems import ADVANTAGES, REWARDS, Problem
from ctpo.theory.setups import POLICIES, Setup
from ctpo.theory.trees import Tree

__all__ = [
    "ADVANTAGES",
    "FAMILIES",
    "POLICIES",
    "REWARDS",
    "SHARINGS",
    "Analysis",
    "Crossing",
    "Estimator",
    "Policy",
    "Problem",
    "Row",
    "Setup",
    "Sharing",
    "Tree",
    "analyse",
    "objective_estimator",
    "read_tables",
]
