"""verl's training worker with two things more: it keeps its ratios, and its learning rate changes at every update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.padding import no_padding_2_padding

from ctpo.adapters.shared import objective_for
from ctpo.adapters.verl import STATS
from ctpo.engines.verl.ratios import Ratios, Taken

_COLUMNS: Final = ("prompts", "responses", "response_mask", "old_log_probs", "advantages")
_OPTIONAL: Final = ("rm_scores", "rollout_is_weights")


class SteppingWorker(TrainingWorker):  # type: ignore[misc]
    """Trains the weights of the policy or of a critic. Its learning rate changes with every update.

    Attributes:
        ratios: is notified of every update; None for a critic.
    """

    ratios: Ratios | None = None

    def train_batch(self, data: TensorDict) -> Any:
        """Take one update."""
        if self.ratios is not None:
            self.ratios.start_update()
        tu.assign_non_tensor(data, update_lr_scheduler=True)
        return super().train_batch(data)

    def keep(self, ratios: Ratios) -> None:
        """Keep the ratios of every forward pass of training from now on."""
        self.ratios = ratios
        self.set_loss_fn(observed(self.loss_fn, ratios))


class RecordingWorker(DetachActorWorker):  # type: ignore[misc]
    """Trains the policy and keeps its ratios."""

    actor_worker_cls = SteppingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def init_model(self) -> None:
        """Load the model, and keep ratios if the loss is one of ours."""
        super().init_model()
        if self.actor is None:
            return
        policy = self.config.actor.policy_loss
        ours, _, preset = str(policy.loss_mode).partition("/")
        if ours == "ctpo":
            objective = objective_for(preset or policy.preset, dict(policy.knobs))
            tokenizer = self.actor.model_config.tokenizer
            self.actor.keep(Ratios(objective, int(self.config.rollout.response_length), tokenizer))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[untyped-decorator]
    def take_ratios(self, samples: int) -> Taken | None:
        """What this process has seen since the last call; None if another one has the same responses."""
        ratios: Ratios | None = self.actor.ratios
        if ratios is None or not self.actor.engine.is_mp_src_rank_with_outputs():
            return None
        return ratios.take(samples)


def observed(loss: Callable[..., Any], ratios: Ratios) -> Callable[..., Any]:
    """The loss of verl's worker, which also shows each forward pass to `ratios`."""

    def compute(model_output: Any, data: TensorDict, dp_group: Any = None) -> Any:
        result = loss(model_output=model_output, data=data, dp_group=dp_group)
        with torch.no_grad():
            logps = no_padding_2_padding(model_output["log_probs"], data)
            stats = {
                name.removeprefix(STATS): value.aggregate()
                for name, value in result[1].items()
                if name.startswith(STATS)
            }
            ratios.add(logps.detach(), _columns(data, logps.shape[1]), stats)
        return result

    return compute


def _columns(data: TensorDict, width: int) -> dict[str, Tensor]:
    """The tensors of a micro-batch, padded at the right; those of responses to this width."""
    columns = {}
    for name in (*_COLUMNS, *(name for name in _OPTIONAL if name in data)):
        values = data[name]
        prompt = name == "prompts"
        mask = None
        if values.is_nested:
            lengths = values.offsets().diff()
            values = values.to_padded_tensor(0)
            mask = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        if not prompt and values.shape[1] < width:
            values = torch.nn.functional.pad(values, (0, width - values.shape[1]))
        columns[name] = values
        if name in ("prompts", "responses"):
            whole = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
            if whole.shape[1] < values.shape[1]:
                whole = torch.nn.functional.pad(whole, (0, values.shape[1] - whole.shape[1]))
            columns["prompt_mask" if prompt else "completion_mask"] = whole
    return columns
