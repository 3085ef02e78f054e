"""Policy objectives: tensors in, tensors out. Takes log-probs, never logits or models; needs only torch."""

from ctpo.objectives.calibration import Calibration, calibrate
from ctpo.objectives.details import Details, position_profile
from ctpo.objectives.layouts.sharded import SequenceShard, contiguous, striped, zigzag
from ctpo.objectives.named_corrections import correction_defaults, correction_names, named_correction
from ctpo.objectives.objective import Objective
from ctpo.objectives.presets import preset, preset_defaults, preset_names
from ctpo.objectives.reference import Output
from ctpo.objectives.rollout_correction import (
    Correction,
    Gate,
    RolloutCorrection,
    Weight,
    anchor_logps,
    correct_rollout,
)
from ctpo.objectives.tokens import turns_of

__all__ = [
    "Calibration",
    "Correction",
    "Details",
    "Gate",
    "Objective",
    "Output",
    "RolloutCorrection",
    "SequenceShard",
    "Weight",
    "anchor_logps",
    "calibrate",
    "contiguous",
    "correct_rollout",
    "correction_defaults",
    "correction_names",
    "named_correction",
    "position_profile",
    "preset",
    "preset_defaults",
    "preset_names",
    "striped",
    "turns_of",
    "zigzag",
]
