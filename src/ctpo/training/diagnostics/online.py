"""`calibrate_online`: the band of `ctpo-calibrated` follows the drift of the run it is in."""

from __future__ import annotations

from typing import Final

from ctpo.objectives import Objective, calibrate
from ctpo.training.config.config import CTPOConfig
from ctpo.training.diagnostics.profile import Sums
from ctpo.training.diagnostics.record import as_profile

_FITTED: Final = ("scale", "power", "centre")


class OnlineBand:
    """Fits the band for the next rollout batch to the one just trained on.

    To that one alone: averages over earlier ones were tried on the embedded task, where drift falls tenfold within a
    few batches, and each lagged behind more than the last batch does (docs/diagnostics.md). The sums are those of all
    processes, so each fits the same band. A rollout batch that cannot be fitted, since nothing has moved, changes
    nothing. The band in use first is the one that the settings name.
    """

    def __init__(self, config: CTPOConfig) -> None:
        settings = config.objective_settings()
        self._config, self._share = config, float(settings["share"])
        self._knobs: dict[str, float] = {name: float(settings[name]) for name in _FITTED}

    def update(self, sums: Sums) -> Objective:
        """The objective with the band for the next rollout batch."""
        try:
            knobs = calibrate(as_profile(sums), self._share).knobs
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

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on with."""
        return dict(self._knobs)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self._knobs = dict(state)
