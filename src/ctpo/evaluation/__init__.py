"""Measuring a model on problems it was not trained on."""

from ctpo.evaluation.heldout import Evaluation, evaluate, pass_at_1

__all__ = ["Evaluation", "evaluate", "pass_at_1"]
