"""`calibrate_online`: the band of `ctpo-calibrated` follows the drift of the run it is in."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from ctpo.objectives import Objective, calibrate
from ctpo.training.config import CTPOConfig
from ctpo.training.diagnostics.profile import Sums
from ctpo.training.diagnostics.record import as_profile

_DECAY: Final = 0.5
"""Of the past at each rollout batch: drift can fall tenfold over the first few of them."""
_FITTED: Final = ("scale", "power", "centre")


class OnlineBand:
    """Fits the band after each rollout batch to an exponential average of the profiles' sums.

    The sums are those of all processes, so each fits the same band. A rollout batch that cannot be fitted (nothing has
    moved) changes nothing. The band in use first is the one that the settings name.
    """

    def __init__(self, config: CTPOConfig) -> None:
        settings = config.objective_settings()
        self._config, self._share = config, float(settings["share"])
        self._average: Tensor | None = None
        self._knobs: dict[str, float] = {name: float(settings[name]) for name in _FITTED}

    def update(self, sums: Sums) -> Objective:
        """The objective with the band for the next rollout batch."""
        new, old = sums.flat(), self._average
        self._average = new if old is None else _DECAY * old.to(new) + (1 - _DECAY) * new
        try:
            knobs = calibrate(as_profile(Sums.of(self._average, sums.edges)), self._share).knobs
        except ValueError:
            return self.objective()
        self._knobs = {name: knobs[name] for name in _FITTED}
        return self.objective()

    def objective(self) -> Objective:
        """The one in use."""
        return self._config.build_objective(**self._knobs)

    def figures(self) -> dict[str, float]:
        """The band in use."""
        return {f"band_{name}": value for name, value in self._knobs.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"average": self._average, "knobs": self._knobs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._average, self._knobs = state["average"], dict(state["knobs"])
