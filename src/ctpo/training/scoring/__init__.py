"""Log-probs of sampled tokens under the model being trained, without computations that cannot change them."""

from ctpo.training.scoring.rows import Rows
from ctpo.training.scoring.scorer import Scorer, ScoringOptions

__all__ = ["Rows", "Scorer", "ScoringOptions"]
