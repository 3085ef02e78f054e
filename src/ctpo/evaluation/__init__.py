"""Measuring a model on problems it was not trained on."""

from ctpo.extras import require

require("ctpo.evaluation", "train", "transformers")

from ctpo.evaluation.heldout import Evaluation, evaluate, pass_at_1
from ctpo.evaluation.metrics import majority, mean_and_error, pass_at_k
from ctpo.evaluation.sampled import sample_task, summarise

__all__ = [
    "Evaluation",
    "evaluate",
    "majority",
    "mean_and_error",
    "pass_at_1",
    "pass_at_k",
    "sample_task",
    "summarise",
]
