"""One micro-batch as TRL cuts it, and what of it has to go through the model together."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from ctpo.cpu.precision import computes_in_bfloat16
from ctpo.objectives import Details
from ctpo.objectives.penalties import kl_penalty
from ctpo.objectives.quantile_gate import QuantileGate
from ctpo.training.scoring import Levers, Rows, Scorer
from ctpo.training.scoring.rows import packs, token_limit
from ctpo.training.scoring.stats import WEIGHT

if TYPE_CHECKING:
    from ctpo.training.step.trainer import CTPOTrainer

FORWARD_EXTRAS = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)
"""TRL's multimodal inputs, which only its own pass understands."""
# Processes of these wait for each other within a forward pass, so all must run equally many.
_LOCKSTEP = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@dataclass(frozen=True)
class Part:
    """Rows scored in one forward pass: the micro-batch's fields for them, and which of scorer.PASSES."""

    inputs: dict[str, Any]
    way: str


@dataclass(frozen=True)
class Scored:
    """What one part came to; B rows, T tokens."""

    loss: Tensor
    policy_loss: Tensor
    """Without a router's auxiliary loss."""
    inputs: dict[str, Any]
    logps: Tensor
    anchor: Tensor
    entropies: Tensor
    stats: dict[str, Tensor]
    details: Details | None = None
    """Where diagnostics cannot ask the objective afterwards."""

    def detached(self) -> Scored:
        """The same without the graph."""
        tensors = ("loss", "policy_loss", "logps", "anchor", "entropies")
        return replace(self, **{name: getattr(self, name).detach() for name in tensors})


def make_scorer(trainer: CTPOTrainer) -> Scorer:
    """The scorer the trainer's settings describe."""
    args = trainer.args

    def autocast() -> Any:
        if args.bf16 or args.fp16 or trainer.model.dtype != torch.float32:
            return trainer.accelerator.autocast()
        device = trainer.model.device.type
        return torch.autocast(device, torch.bfloat16) if computes_in_bfloat16(trainer) else nullcontext()

    levers = Levers(**{field.name: getattr(args, field.name) for field in fields(Levers)})
    return Scorer(
        levers,
        temperature=trainer.temperature,
        float32_head=args.cast_lm_head_to_fp32,
        autocast=autocast,
    )


def parts(trainer: CTPOTrainer, model: Any, inputs: dict[str, Any], mask: Tensor) -> list[Part]:
    """The micro-batch without the rows that cannot change the gradient, cut to the token limit.

    Args:
        model: as it is wrapped for training.
        inputs: TRL's fields of B rows.
        mask: [B, T] model tokens.

    Returns:
        At least one part, since every process must take part in the backward pass.
    """
    if trainer.aux_loss_enabled or any(inputs.get(name) is not None for name in FORWARD_EXTRAS):
        return [Part(inputs, "plain")]
    way = trainer.scorer.way(model, transformers_model(trainer, model))
    chosen = _live_rows(trainer, inputs, mask).nonzero()[:, 0]
    if len(chosen) == 0:  # the shortest row that can be scored: its loss is 0, and its gradient too
        lengths = torch.where(mask.any(dim=1), inputs["completion_mask"].sum(dim=1), mask.shape[1] + 1)
        chosen = lengths.argmin(dim=0, keepdim=True)
        way = way if bool(mask[chosen].any()) else "plain"
    shared = way == "packed" and trainer.args.share_prompts
    cut = packs(rows_of(inputs, mask), chosen, _limit(trainer), shared=shared)
    if len(cut) == 1 and len(chosen) == len(mask):
        return [Part(inputs, way)]
    return [Part(take_rows(inputs, index, len(mask)), way) for index in cut]


def transformers_model(trainer: CTPOTrainer, model: Any) -> Any:
    """The model inside of what distribution, compilation and adapters wrap around it."""
    inner = trainer.accelerator.unwrap_model(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def whole_stats(trainer: CTPOTrainer, done: list[Scored], mask: Tensor) -> dict[str, Tensor]:
    """Statistics of the micro-batch from its parts: as of one call over the rows scored, counts of all rows."""
    if len(done) == 1:
        stats = dict(done[0].stats)
    else:
        logps, anchor, entropies = (
            torch.cat([getattr(part, name) for part in done]) for name in ("logps", "anchor", "entropies")
        )
        with torch.no_grad():
            masks = torch.cat([loss_mask(part.inputs) for part in done])
            advantages = torch.cat([weighted_advantages(part.inputs) for part in done])
            stats = dict(trainer.objective(logps, anchor, advantages, masks).stats)
            stats["entropy"] = masked_mean(entropies, masks)
            if trainer.beta != 0.0:
                reference = torch.cat([part.inputs["ref_per_token_logps"] for part in done])
                stats["kl"] = masked_mean(kl_penalty(logps, reference), masks)
    scored = sum(len(part.logps) for part in done)
    stats["tokens"] = mask.sum().to(stats["tokens"])
    stats["sequences"] = mask.any(dim=1).sum().to(stats["sequences"])
    stats["scored_rows"] = torch.full_like(stats["tokens"], scored / len(mask))
    stats[WEIGHT] = _weight(done, scored < len(mask)).to(stats["tokens"])
    return stats


def _weight(done: list[Scored], some_left_out: bool) -> Tensor:
    """Tokens scored. Next to nothing where the one row was only scored because a pass must be made: its averages
    count when there are no others, and otherwise are as if it had been left out like its equals."""
    tokens = torch.stack([loss_mask(part.inputs).sum() for part in done]).sum().double()
    idle = torch.stack([(part.inputs["advantages"] == 0).all() for part in done]).all()
    return torch.where(idle, 1e-6, tokens) if some_left_out else tokens


def loss_mask(inputs: dict[str, Any]) -> Tensor:
    """[B, T] tokens the model sampled."""
    mask: Tensor = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask


def weighted_advantages(inputs: dict[str, Any]) -> Tensor:
    """Advantages, times TRL's vLLM rollout correction where there is one.

    The loss is positively homogeneous in the advantage, so weighing the one is weighing the other.
    """
    advantages: Tensor = inputs["advantages"]
    ratio: Tensor | None = inputs.get("importance_sampling_ratio")
    if ratio is None:
        return advantages
    return (advantages[:, None] if advantages.dim() == 1 else advantages) * ratio


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the tokens under the mask, 0 of none."""
    mean: Tensor = torch.where(mask_BT, values_BT.detach(), 0.0).sum() / mask_BT.sum().clamp(min=1)
    return mean


def score_padded(
    trainer: CTPOTrainer,
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    logits_to_keep: int,
    batch_size: int | None = None,
    compute_entropy: bool = False,
    compute_aux_loss: bool = False,
    **extras: Any,
) -> tuple[Tensor, Tensor | None, None] | None:
    """TRL's own request for log-probs without gradient (old policy, reference), by the scorer; None where it can't."""
    if compute_aux_loss or torch.is_grad_enabled() or any(value is not None for value in extras.values()):
        return None
    inner = transformers_model(trainer, model)
    way = trainer.scorer.way(model, inner)
    mask = attention_mask[:, -logits_to_keep:].bool()
    if way == "plain" or not bool(mask.any()):
        return None
    split = input_ids.shape[1] - logits_to_keep
    rows = Rows(
        input_ids[:, :split], attention_mask[:, :split], input_ids[:, split:], attention_mask[:, split:], mask
    )
    logps, entropies = torch.zeros(2, *mask.shape, device=mask.device).unbind()
    shared = way == "packed" and trainer.args.share_prompts
    for index in packs(rows, mask.any(dim=1).nonzero()[:, 0], _limit(trainer), shared=shared):
        found = trainer.scorer.score(model, inner, rows.take(index), way)
        logps[index], entropies[index] = (values.to(logps.dtype) for values in found)
    return logps, entropies if compute_entropy else None, None


def count_rows(buffer: list[dict[str, Any]]) -> Tensor:
    """[micro-batches, 2] model tokens, and responses with at least one, of each micro-batch of a rollout batch."""
    masks = [loss_mask(part) for part in buffer]
    return torch.stack([torch.stack([mask.sum(), mask.any(dim=1).sum()]) for mask in masks])


def rows_of(inputs: dict[str, Any], mask: Tensor) -> Rows:
    """TRL's fields as the scorer takes them."""
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    return Rows(**{name: inputs[name] for name in names}, wanted=mask)


def take_rows(inputs: dict[str, Any], index: Tensor, count: int) -> dict[str, Any]:
    """The fields with these of `count` rows; scalars and fields of another length stay."""
    return {
        name: value[index] if isinstance(value, Tensor) and value.ndim and len(value) == count else value
        for name, value in inputs.items()
    }


def _live_rows(trainer: CTPOTrainer, inputs: dict[str, Any], mask: Tensor) -> Tensor:
    """[B] rows with model tokens, and an advantage where only the policy loss counts."""
    rows = mask.any(dim=1)
    if not (trainer.args.skip_zero_advantage and trainer.beta == 0.0 and row_wise(trainer)):
        return rows
    advantages: Tensor = inputs["advantages"]
    return rows & (advantages.reshape(len(mask), -1) != 0).any(dim=1)


def row_wise(trainer: CTPOTrainer) -> bool:
    """Whether a row's loss depends on that row and the denominators only."""
    return not isinstance(trainer.objective.trust_region, QuantileGate)


def _limit(trainer: CTPOTrainer) -> int | None:
    if not row_wise(trainer) or trainer.accelerator.distributed_type in _LOCKSTEP:
        return None
    limit: int | None = trainer.args.max_tokens_per_micro_batch
    if limit is not None:
        return limit or None
    model = trainer.accelerator.unwrap_model(trainer.model)
    low = trainer.args.bf16 or model.dtype == torch.bfloat16 or computes_in_bfloat16(trainer)
    return token_limit(model, in_bfloat16=low)
