"""Measuring a model on problems that it was not trained on."""

from ctpo.extras import require

require("ctpo.evaluation", "train", "transformers")

from ctpo.evaluation.heldout import Evaluation, evaluate
from ctpo.evaluation.judged import JudgedResponse, sample_problems
from ctpo.evaluation.metrics import majority, mean_and_error, pass_at_k
from ctpo.evaluation.sampled import sample_task, summarise

__all__ = [
    "Evaluation",
    "JudgedResponse",
    "evaluate",
    "majority",
    "mean_and_error",
    "pass_at_k",
    "sample_problems",
    "sample_task",
    "summarise",
]
