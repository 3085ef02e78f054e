"""verl's task runner with our records: the process on Ray that drives a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transfer_queue
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base

from ctpo.engines.verl.records import VerlRecords
from ctpo.runs.directory import RunDirectory

_TaskRunner = TaskRunnerV1.__ray_metadata__.modified_class


class RecordingRunner(_TaskRunner):  # type: ignore[misc, valid-type]
    """Runs verl's own trainer, in whichever mode the configuration names, and writes the records of the run."""

    def run(self, config: Any) -> None:
        """Train. `config.ctpo` says where the records go."""
        from omegaconf import open_dict

        with open_dict(config):
            ours = config.pop("ctpo")
        mode = config.trainer.v1.trainer_mode
        records = VerlRecords(RunDirectory(Path(ours.run)), int(ours.updates), float(ours.seconds))
        trainer_base.TRAINER_REGISTRY[mode] = recorded(get_trainer_cls(mode), records)
        super().run(config)


def recorded(base: Any, records: VerlRecords) -> Any:
    """A trainer of verl's that writes records."""

    class Recorded(base):  # type: ignore[misc]
        def _validate(self) -> Any:
            figures = super()._validate()
            records.evaluated(self.global_steps, figures, len(self.val_dataset))
            return figures

        def _compute_metrics(
            self, batch: Any, metrics: dict[str, Any], timing_raw: Any, global_steps: int, epoch: int
        ) -> None:
            super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
            records.trained(global_steps, metrics, _responses(batch))

    return Recorded


def _responses(batch: Any) -> list[dict[str, Any]]:
    """What our agent loop says of each response of a batch."""
    real = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    data = transfer_queue.kv_batch_get(
        keys=real, partition_id=batch.partition_id, select_fields=["extra_fields"]
    )
    return [dict(each.get("reward_extra_info") or {}) for each in data.pop("extra_fields").tolist()]
