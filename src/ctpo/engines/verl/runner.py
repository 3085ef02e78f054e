"""verl's task runner with our records: the process on Ray that drives a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ray
import transfer_queue
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base

from ctpo.adapters.shared import objective_for
from ctpo.engines.verl.dealing import dealt
from ctpo.engines.verl.files import TRANSCRIPT
from ctpo.engines.verl.records import VerlRecords
from ctpo.engines.verl.worker import RecordingWorker, SteppingWorker
from ctpo.runs.directory import RunDirectory

_TaskRunner = TaskRunnerV1.__ray_metadata__.modified_class
_TRAINING: Final = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


class RecordingRunner(_TaskRunner):  # type: ignore[misc, valid-type]
    """Runs verl's own trainer, in whichever mode the configuration names, and writes the records of the run."""

    def run(self, config: Any) -> None:
        """Train. `config.ctpo` says where the records go."""
        from omegaconf import OmegaConf, open_dict

        with open_dict(config):
            ours = OmegaConf.to_container(config.pop("ctpo"), resolve=True)
        mode = config.trainer.v1.trainer_mode
        trainer_base.TRAINER_REGISTRY[mode] = recorded(get_trainer_cls(mode), _records(config, ours))
        super().run(config)


def _records(config: Any, ours: Mapping[str, Any]) -> VerlRecords:
    policy = config.actor_rollout_ref.actor.policy_loss
    ctpo, _, preset = str(policy.loss_mode).partition("/")
    return VerlRecords(
        RunDirectory(Path(ours["run"])),
        updates=ours["updates"],
        seconds=ours["seconds"],
        transcripts=ours["transcripts"],
        every=int(config.trainer.test_freq),
        length=int(config.trainer.total_training_steps),
        objective=objective_for(preset or policy.preset, dict(policy.knobs)) if ctpo == "ctpo" else None,
        longest=int(config.data.max_response_length),
    )


def recorded(base: Any, records: VerlRecords) -> Any:
    """A trainer of verl's that writes records, and whose updates hold whole groups."""

    class Recorded(base):  # type: ignore[misc]
        def _init_resource_pool_mgr(self) -> None:
            super()._init_resource_pool_mgr()
            for role in _TRAINING:
                if role in self.role_worker_mapping:
                    self.role_worker_mapping[role] = ray.remote(RecordingWorker)
            if Role.Critic in self.role_worker_mapping:
                self.role_worker_mapping[Role.Critic] = ray.remote(SteppingWorker)

        def _balance_batch(self, batch: Any, *args: Any, **rest: Any) -> Any:
            batch = super()._balance_batch(batch, *args, **rest)
            ours = self.config.actor_rollout_ref
            update = ours.actor.ppo_mini_batch_size * ours.rollout.n
            processes = max(self.actor_rollout_wg._dispatch_info["actor"]) + 1
            if len(batch) % update == 0:
                batch.reorder(dealt(batch.keys, batch.tags, len(batch) // update, processes))
            return batch

        def _val_metrics_update(
            self, data_sources: Any, sample_uids: Any, infos: Any, *args: Any, **rest: Any
        ) -> Any:
            written = [json.loads(each) for each in infos.pop(TRANSCRIPT, ()) if each is not None]
            records.evaluated(self.global_steps, sorted(written, key=lambda row: int(row["place"])))
            return super()._val_metrics_update(data_sources, sample_uids, infos, *args, **rest)

        def _compute_metrics(
            self, batch: Any, metrics: dict[str, Any], timing_raw: Any, global_steps: int, epoch: int
        ) -> None:
            super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
            taken = self.actor_rollout_wg.take_ratios(records.samples(global_steps))
            records.trained(global_steps, metrics, _responses(batch), [each for each in taken if each])

    return Recorded


def _responses(batch: Any) -> list[dict[str, Any]]:
    """What our agent loop says of each response of a batch."""
    real = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    data = transfer_queue.kv_batch_get(
        keys=real, partition_id=batch.partition_id, select_fields=["extra_fields"]
    )
    return [dict(each.get("reward_extra_info") or {}) for each in data.pop("extra_fields").tolist()]
