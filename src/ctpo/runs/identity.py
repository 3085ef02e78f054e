"""What makes two runs the same run: the settings that decide a result, and the shapes of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

CHANGES_NOTHING: Final = frozenset(
    {
        *("output_dir", "transcripts", "rollout_batch_size", "report_to", "run_name", "logging_dir"),
        *("records", "script", "ray_address"),
        *("save_steps", "save_total_limit", "save_strategy"),
    }
)
"""Settings that say where a run lives, how it is watched and how it is split up, and leave its result as it is.

`threads` is not among them: sums over several threads are rounded differently.
"""

_RECORDED_AS: Final = {
    f"{unit}_{bound}": bound for unit in ("log", "ratio") for bound in ("low", "high", "dual")
}
"""The names under which earlier releases recorded some knobs. Identities keep them, so that old records stay valid."""


def recorded_name(knob: str) -> str:
    """The name of an objective's knob in what identifies a run."""
    return _RECORDED_AS.get(knob, knob)


def deciding_settings(
    settings: Mapping[str, Any], leave_out: Collection[str] = CHANGES_NOTHING
) -> dict[str, Any]:
    """Return the settings of a recipe that decide the result of its run."""
    deciding = {name: value for name, value in settings.items() if name not in leave_out}
    knobs = deciding.get("objective_kwargs")
    if isinstance(knobs, Mapping):
        deciding["objective_kwargs"] = {recorded_name(name): value for name, value in knobs.items()}
    return deciding


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    """Return the number of parameters and a SHA-256 digest of their names and shapes.

    DeepSpeed's ZeRO-3 splits parameters while the model loads; their whole shapes are used.
    """
    shapes = [f"{name}:{list(_shape(parameter))}" for name, parameter in sorted(model.named_parameters())]
    digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
    return {"parameters": sum(_size(parameter) for parameter in model.parameters()), "shapes": digest}


def _shape(parameter: torch.nn.Parameter) -> Any:
    return getattr(parameter, "ds_shape", parameter.shape)


def _size(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
