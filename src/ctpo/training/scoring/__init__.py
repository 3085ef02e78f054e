"""Log-probs of sampled tokens under the model being trained, computing nothing that cannot change the result."""

from ctpo.training.scoring.rows import Rows
from ctpo.training.scoring.scorer import Levers, Scorer

__all__ = ["Levers", "Rows", "Scorer"]
