"""`calibrate_online`: the trust region of `ctpo-calibrated` follows the drift of the run that uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ctpo.objectives import Objective, calibrate
from ctpo.training.diagnostics.profile import ProfileSums
from ctpo.training.diagnostics.record import as_profile

_FITTED: Final = ("scale", "power", "centre")


class OnlineBand:
    """Fits the trust region for the next rollout batch to the rollout batch that was just trained on.

    Only the last rollout batch counts. Averages over earlier ones were tried on the embedded task, where drift falls
    tenfold within a few rollout batches; they followed it more slowly. The sums cover all processes, so each process
    fits the same band. If a rollout batch cannot be fitted, because nothing has moved, the band stays as it is. If the
    settings give a `log_drift` other than 0, the centre of the band follows the mean, too.

    Args:
        settings: all knobs of the objective. The band in use first is the one they describe.
        build: makes the objective with some of its knobs changed.
    """

    def __init__(self, settings: Mapping[str, Any], build: Callable[..., Objective]) -> None:
        self._share, self._build = float(settings["share"]), build
        self._drift = bool(settings["log_drift"])
        self._fitted = (*_FITTED, "log_drift") if self._drift else _FITTED
        self._knobs: dict[str, float] = {name: float(settings[name]) for name in self._fitted}

    def update(self, sums: ProfileSums) -> Objective:
        """The objective with the band for the next rollout batch, fitted to these sums."""
        try:
            knobs = calibrate(as_profile(sums), self._share, drift=self._drift).knobs
        except ValueError:
            return self.objective()
        self._knobs = {name: knobs.get(name, 0.0) for name in self._fitted}
        return self.objective()

    def objective(self) -> Objective:
        """The objective with the band in use."""
        return self._build(**self._knobs)

    def figures(self) -> dict[str, float]:
        """The band in use, for the records."""
        return {f"band_{name}": value for name, value in self._knobs.items()}

    def state_dict(self) -> dict[str, float]:
        """The band in use, for a checkpoint."""
        return dict(self._knobs)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from what `state_dict` returned."""
        self._knobs = dict(state)
