"""Mathematical answers: extracting an answer from a text, and comparing it with the reference."""

from ctpo.tasks.math.answers import final_answer, reference_answer
from ctpo.tasks.math.check import MathCheck

__all__ = ["MathCheck", "final_answer", "reference_answer"]
