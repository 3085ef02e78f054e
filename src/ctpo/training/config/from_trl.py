"""Settings of TRL's own loss, read as an objective of ours whose loss is equal to TRL's.

A script of TRL's may name its loss by `loss_type`, `importance_sampling_level`, `epsilon` and the like. `translate`
returns the objective that computes the same loss, and refuses what no objective of ours equals. It is used for
`CTPOConfig` and for recipes, so this module imports neither torch nor TRL. Equality is tested against the installed
TRL (`tests/training/test_two_names.py`).
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ctpo.training.config.older import OlderKeyWarning, read_older_keys
from ctpo.training.config.sources import preset_knobs

DEFAULT_OBJECTIVE: Final = "ctpo"
"""What is trained if neither an objective nor a setting of TRL's loss is given."""
LOSS_SETTINGS: Final[Mapping[str, Any]] = {
    "loss_type": "dapo",
    "importance_sampling_level": "token",
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "sapo_temperature_neg": 1.05,
    "sapo_temperature_pos": 1.0,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
}
"""The settings of TRL's loss that an objective replaces, with TRL's defaults. `CTPOConfig` has None for each of them,
so that a value that a script gives differs from none given. A test compares the defaults with the installed TRL."""
DENOMINATORS: Final = ("minibatch", "rollout-batch", "micro-batch")

_CLIPPED: Final = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_LOSSES: Final = (*_CLIPPED, "cispo", "sapo", "vespo")
_LEVELS: Final = ("token", "sequence")
_READ: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(_CLIPPED, ("epsilon", "epsilon_high", "delta")),
    "cispo": ("epsilon_high",),
    "sapo": ("sapo_temperature_neg", "sapo_temperature_pos"),
    "vespo": ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
}
"""The numbers that each loss of TRL's reads. It ignores the others."""


class LossSettingsNotice(UserWarning):
    """Settings of TRL's loss were read as an objective, or an objective took their place."""


@dataclass(frozen=True)
class Translation:
    """What the settings of a script for TRL mean here."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The settings of ours that they stand for."""
    notice: str | None = None
    """One line that says which objective settings of TRL's loss were read as."""
    older: list[str] = field(default_factory=list)
    """A sentence for each key that TRL or transformers no longer have."""

    def tell(self, stacklevel: int) -> None:
        """Say all of it as warnings; `stacklevel` is the caller's."""
        for sentence in self.older:
            warnings.warn(sentence, OlderKeyWarning, stacklevel=stacklevel + 1)
        if self.notice is not None:
            warnings.warn(self.notice, LossSettingsNotice, stacklevel=stacklevel + 1)


def given_loss_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of TRL's loss that are set, by name."""
    return {name: settings[name] for name in LOSS_SETTINGS if settings.get(name) is not None}


def translate(settings: Mapping[str, Any], trl_defaults: Mapping[str, Any]) -> Translation:
    """The settings of ours that settings of a script for TRL stand for.

    They are the objective whose loss is the one that the settings of TRL's loss describe, and the successors of older
    keys.

    Args:
        settings: settings of `CTPOConfig` by name; those that are missing have their defaults.
        trl_defaults: the defaults of TRL's GRPOConfig by name.

    Raises:
        ValueError: if an objective is given too, if no objective of ours has that loss, or if an older key cannot be
            read. The message names all such settings at once, each with what to use in its place.
    """
    successors, sentences, refused = read_older_keys(settings, trl_defaults)
    given = given_loss_settings(settings)
    ours: dict[str, Any] = {}
    notice = None
    if given:
        loss = _Loss({**LOSS_SETTINGS, **given}, {**trl_defaults, **settings, **successors})
        rivals = [name for name in ("objective", "objective_kwargs") if settings.get(name)]
        if rivals:
            refused.append(_both(settings, rivals, given, loss))
        elif loss.problems:
            refused.append(
                f"{_listed(given)} of TRL: no objective here has this loss: {'; '.join(loss.problems)}"
            )
        else:
            ours = {**loss.objective(), **loss.correction(trl_defaults)}
            idle = [name for name in given if name not in loss.read]
            ignored = f" ({', '.join(idle)}: TRL's {loss.type} does not read it)" if idle else ""
            notice = f"{_listed(given)} of GRPOConfig: {_listed(ours)}{ignored}"
    if refused:
        raise ValueError("; ".join(refused))
    return Translation({**successors, **ours}, notice, sentences)


class _Loss:
    """One of TRL's losses: the objective that equals it, and what stands in the way.

    Args:
        values: all of LOSS_SETTINGS.
        around: the other settings that play a part.
    """

    def __init__(self, values: Mapping[str, Any], around: Mapping[str, Any]) -> None:
        self.type, self._level = values["loss_type"], values["importance_sampling_level"]
        names = ("loss_type", "importance_sampling_level")
        self.read = (*names, *_READ[self.type]) if self.type in _LOSSES else tuple(LOSS_SETTINGS)
        self._values, self._around = values, around
        self.problems = list(self._find_problems())

    def objective(self) -> dict[str, Any]:
        """`objective`, `objective_kwargs` and `denominators`. There must be no problems."""
        name, knobs = self._knobs()
        return {
            "objective": name,
            "objective_kwargs": knobs,
            "denominators": "micro-batch" if self.type == "bnpo" else "rollout-batch",
        }

    def correction(self, trl_defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of TRL's default correction of vLLM's log-probs, where the script leaves it at that."""
        around = self._around
        names = [f"vllm_importance_sampling_{name}" for name in ("mode", "clip_min", "clip_max")]
        if (
            not (around["use_vllm"] and around["vllm_importance_sampling_correction"])
            or around.get("rollout_correction", "auto") != "auto"
            or around.get("rollout_correction_kwargs")
            or around.get("anchor", "old") != "old"
            or around.get("vllm_importance_sampling_cap") is not None
            or any(around[name] != trl_defaults[name] for name in names)
        ):
            return {}
        mode, low, high = (trl_defaults[name] for name in names)
        assert mode == "sequence_mask"  # a test compares the two corrections
        bounds = {name: float(value) for name, value in (("low", low), ("high", high)) if value is not None}
        gate = {"statistic": "ratio", "level": "sum", **bounds}
        return {
            "rollout_correction": "custom",
            "rollout_correction_kwargs": {"weight": {"level": "sum"}, "gates": [gate]},
        }

    def _knobs(self) -> tuple[str, dict[str, Any]]:
        values = self._values
        if self.type == "sapo":
            return "sapo", {
                "tau_pos": float(values["sapo_temperature_pos"]),
                "tau_neg": float(values["sapo_temperature_neg"]),
            }
        if self.type == "vespo":
            return "vespo", {name[6:]: float(values[name]) for name in _READ["vespo"]}
        if self.type == "cispo":
            return "cispo", {"ratio_low": 1.0, "ratio_high": self._high - 1.0}
        low, high, delta = float(values["epsilon"]), self._high, values["delta"]
        if delta is not None:
            # TRL caps the ratio at delta first. A cap inside of the band bounds A > 0, and the band bounds A < 0.
            high, delta = min(high, float(delta) - 1), max(float(delta), 1 + high)
        knobs: dict[str, Any] = {"ratio_low": low, "ratio_high": high, "ratio_dual": delta}
        sequence = self._level == "sequence"
        if self.type == "grpo":
            return "gspo" if sequence else "grpo", knobs
        if self.type == "luspo":
            return ("lusp", knobs) if sequence else ("grpo", {**knobs, "reduction": "seq-mean-token-sum"})
        if self.type == "dr_grpo":
            knobs |= {
                "reduction": "seq-mean-token-sum-norm",
                "norm_length": self._around["max_completion_length"],
            }
            return "gspo" if sequence else "dr-grpo", knobs
        return ("gspo", {**knobs, "reduction": "token-mean"}) if sequence else ("dapo", knobs)

    @property
    def _high(self) -> float:
        high = self._values["epsilon_high"]
        return float(self._values["epsilon"] if high is None else high)

    def _find_problems(self) -> list[str]:
        problems = []
        if self.type not in _LOSSES:
            problems.append(
                f"loss_type={self.type!r} is none of TRL's {', '.join(_LOSSES)}; {_preset_for(self.type)}"
            )
        if self._level not in _LEVELS:
            ours = "; for the gradient of single tokens, objective='gspo-token'"
            problems.append(f"importance_sampling_level={self._level!r} is not token or sequence{ours}")
        elif self._level == "sequence":
            problems += self._sequence_problems()
        numbers = [name for name in self.read[2:] if self._values[name] is not None]
        bad = [name for name in numbers if not _is_number(self._values[name])]
        problems += [f"{name}={self._values[name]!r} is not a number of 0 or more" for name in bad]
        if not bad:
            problems += self._range_problems()
        around = self._around
        if self.type == "vespo" and around["use_vllm"] and around["vllm_importance_sampling_correction"]:
            problems.append(
                "loss_type='vespo' takes vLLM's correction into its sequence weight, but a correction here multiplies "
                "the loss; set vllm_importance_sampling_correction=False, or objective='vespo' and a rollout_correction"
            )
        if self.type == "dr_grpo" and around["max_completion_length"] is None:
            problems.append("loss_type='dr_grpo' divides by max_completion_length; set that")
        return problems

    def _sequence_problems(self) -> list[str]:
        around = self._around
        if self.type in ("cispo", "sapo"):
            return [
                f"loss_type={self.type!r} with importance_sampling_level='sequence' weighs by the mean ratio of the "
                f"response; use importance_sampling_level='token', or objective='gspo' for a clip of that ratio"
            ]
        if self.type == "vespo" and around["beta"] and around["use_bias_correction_kl"]:
            return [
                "loss_type='vespo' with importance_sampling_level='sequence' weighs the penalty of beta by the mean "
                "ratio of the response; use importance_sampling_level='token', as TRL advises"
            ]
        return []

    def _range_problems(self) -> list[str]:
        delta = self._values["delta"]
        if self.type == "cispo" and self._high < 1:
            source = (
                "" if self._values["epsilon_high"] is not None else ", TRL's value where only epsilon is set,"
            )
            return [
                f"loss_type='cispo' with epsilon_high={self._high}{source} caps every weight at that ratio, so that no "
                "ratio has a say; set epsilon_high=5.0 (ScaleRL), or objective='cispo' alone"
            ]
        if self.type in _CLIPPED and delta is not None and float(delta) < 1:
            return [
                f"delta={delta} is an absolute ratio, and caps those of 1 too; use more than 1 + epsilon_high"
            ]
        zeros = [
            name for name in _READ.get(self.type, ()) if name.startswith("sapo") and not self._values[name]
        ]
        return [f"{name}=0 divides by 0; use more than 0" for name in zeros]


def _both(settings: Mapping[str, Any], rivals: list[str], given: Mapping[str, Any], loss: _Loss) -> str:
    """What to do if an objective and settings of TRL's loss are given."""
    named = settings.get("objective") or DEFAULT_OBJECTIVE
    ours = _listed({name: settings[name] for name in rivals})
    trls = "refused: " + "; ".join(loss.problems) if loss.problems else f"read as {_listed(loss.objective())}"
    return (
        f"{ours} and TRL's {_listed(given)} are both set, and each names a loss. Drop {', '.join(given)} to train "
        f"{named}{_bounds_advice(named, given)}; or drop {', '.join(rivals)} to train TRL's loss ({trls})"
    )


def _bounds_advice(objective: str, given: Mapping[str, Any]) -> str:
    """What becomes of bounds of TRL's, which are on the ratio of one token. A preset's unit may differ."""
    bounds = {"epsilon": "low", "epsilon_high": "high", "delta": "dual"}
    used, knobs = [name for name in bounds if name in given], preset_knobs().get(objective, {})
    if not used:
        return ""
    if "ratio_low" in knobs:
        same = {f"ratio_{bounds[name]}": given[name] for name in used if f"ratio_{bounds[name]}" in knobs}
        if "epsilon_high" not in given and "epsilon" in given:
            same["ratio_high"] = given["epsilon"]
        return f" (its objective_kwargs={same} have the same unit)"
    if "log_low" in knobs:
        return (
            f" ({objective} bounds a log ratio, in nats, not the ratio of one token, so keep its own bounds)"
        )
    return f" ({objective} has no such bounds)"


def _preset_for(loss_type: Any) -> str:
    """Advice on a loss that TRL does not have."""
    spelled = str(loss_type).lower().replace("_", "-")
    if spelled in preset_knobs():
        return f"objective={spelled!r} is ours"
    near = difflib.get_close_matches(str(loss_type), [*_LOSSES, *preset_knobs()], n=1)
    return f"did you mean {near[0]!r}?" if near else "or choose an objective (docs/reference/objectives.md)"


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value)) and float(value) >= 0
    except (TypeError, ValueError):
        return False


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
