"""How a trainer of transformers writes checkpoints that are complete, and goes on from them or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer

from ctpo.training.step.saving import staged
from ctpo.training.step.state import readable


class Checkpoints(Trainer):  # type: ignore[misc]
    """What `CTPOTrainer` and `WarmUpTrainer` have in common. It stands before TRL's trainer among their bases.

    A checkpoint is written beside its place, sealed with digests and an identity, and moved there in one rename. A file
    of a checkpoint that cannot be read is an error of one line.
    """

    run_identity: dict[str, Any]
    """What its checkpoints say about the run. A command puts its recipe here."""
    model_facts: dict[str, Any]
    """What the checkpoints say about the model (`runs.identity.describe_model`)."""
    _staging: Path | None = None

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must belong to, so that this trainer may continue from it."""
        return {**self.run_identity, "world_size": self.args.world_size, "model": self.model_facts}

    def add_to_checkpoint(self, folder: Path) -> None:
        """Write what this trainer keeps beside the weights and what transformers writes. Every process calls it."""

    def continue_from(self, checkpoint: Path) -> None:
        """Read what `add_to_checkpoint` wrote. Every process calls it, once weights and optimizer are loaded."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with staged(self, self.identity()) as folder:
            self.add_to_checkpoint(folder)
            self._staging = folder.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            self.continue_from(Path(checkpoint))
