"""Policy objectives: tensors in, tensors out. Takes log-probs, never logits or models; needs torch and
nothing else.
"""

from ctpo.objectives.objective import Objective, Output
from ctpo.objectives.presets import preset, preset_defaults, preset_names

__all__ = ["Objective", "Output", "preset", "preset_defaults", "preset_names"]
