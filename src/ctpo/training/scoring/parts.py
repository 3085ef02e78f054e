"""The parts of a micro-batch: which of its rows go through the model, which of them together, and by which pass."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from ctpo.training.scoring.choose import PassChoice
from ctpo.training.scoring.microbatch import MicroBatch
from ctpo.training.scoring.precision import computes_in_bfloat16
from ctpo.training.scoring.rows import Rows, packs, token_limit
from ctpo.training.scoring.scorer import Scorer, ScoringOptions
from ctpo.training.view import TrainerView

_LOCKSTEP: Final = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
"""Here processes wait for each other within a forward pass, so all of them must run equally many."""
_KEPT_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Part:
    """Rows of a micro-batch that one forward pass scores."""

    batch: MicroBatch
    pass_name: str
    """One of `choose.PASSES`."""


@dataclass(frozen=True)
class States:
    """The hidden states from which the tokens of completions are predicted, kept from a pass that ran anyway."""

    mask: Tensor
    """[B, T] true on the tokens that have one."""
    states: Tensor
    """[M, D] in row-major order."""

    def of(self, index: Tensor, wanted: Tensor) -> Tensor:
        """[m, D] those of some rows, of the tokens wanted [b, T] there."""
        place = (self.mask.flatten().cumsum(0) - 1).view_as(self.mask)
        return self.states[place[index][wanted]]


class PartScorer:
    """Cuts micro-batches into parts and scores them, as the settings of one trainer say."""

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer = trainer
        args = trainer.args
        self._scorer = Scorer(
            ScoringOptions(**{each.name: getattr(args, each.name) for each in fields(ScoringOptions)}),
            temperature=trainer.temperature,
            float32_head=args.cast_lm_head_to_fp32,
            autocast=self._autocast,
        )
        self._choice = PassChoice(self._scorer)
        self._keeps = False
        self._kept: States | None = None

    def parts(self, model: Any, batch: MicroBatch) -> list[Part]:
        """The micro-batch without the rows that cannot change the gradient, cut to the limit of tokens.

        Args:
            model: as it is wrapped for training.
            batch: B rows.

        Returns:
            At least one part, because every process must take part in the backward pass.
        """
        trainer = self._trainer
        if trainer.aux_loss_enabled or batch.multimodal or learns_from_entropy(trainer):
            return [Part(batch, "plain")]
        pass_name = self._choice.best(model, self.unwrapped(model))
        chosen = self._live_rows(batch).nonzero()[:, 0]
        if len(chosen) == 0:  # take the shortest row that can be scored: its loss and its gradient are 0
            mask = batch.response_mask
            too_long = mask.shape[1] + 1
            lengths = torch.where(mask.any(dim=1), batch.completion_mask.sum(dim=1), too_long)
            chosen = lengths.argmin(dim=0, keepdim=True)
            pass_name = pass_name if bool(mask[chosen].any()) else "plain"
        cut = self.packs(batch.rows, chosen, pass_name)
        if len(cut) == 1 and len(chosen) == len(batch):
            return [Part(batch, pass_name)]
        return [Part(batch.take(index), pass_name) for index in cut]

    def score(self, model: Any, part: Part) -> tuple[Tensor, Tensor]:
        """Log-probs [B, T], differentiable, and entropies [B, T] of the part's response tokens, in nats.

        Args:
            model: as it is wrapped for training.
            part: its pass is "packed" or "padded"; "plain" is TRL's own.
        """
        return self._scorer.score(model, self.unwrapped(model), part.batch.rows, part.pass_name)

    def score_padded(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[Tensor, Tensor | None, None] | None:
        """What TRL's `_get_per_token_logps_and_entropies` returns, without gradient; None if only TRL's pass can do it.

        TRL asks this for the old policy and for the reference model. The arguments are TRL's.
        """
        if compute_aux_loss or torch.is_grad_enabled():
            return None
        if any(value is not None for value in multimodal.values()):
            return None
        unwrapped = self.unwrapped(model)
        pass_name = self._choice.best(model, unwrapped)
        mask = attention_mask[:, -logits_to_keep:].bool()
        if pass_name == "plain" or not bool(mask.any()):
            return None
        split = input_ids.shape[1] - logits_to_keep
        rows = Rows(
            *(input_ids[:, :split], attention_mask[:, :split]),
            *(input_ids[:, split:], attention_mask[:, split:], mask),
        )
        logps, entropies = torch.zeros(2, *mask.shape, device=mask.device).unbind()
        keeps, self._keeps = self._keeps, False
        states: list[Tensor] | None = [] if keeps else None
        places: list[Tensor] = []
        place = (mask.flatten().cumsum(0) - 1).view_as(mask)
        for index in self.packs(rows, mask.any(dim=1).nonzero()[:, 0], pass_name):
            values = self._scorer.score(model, unwrapped, rows.take(index), pass_name, states)
            logps[index], entropies[index] = (each.to(logps.dtype) for each in values)
            places.append(place[index][mask[index]])
            if (
                states is not None
                and place.max() * states[0].shape[1] * states[0].element_size() > _KEPT_BYTES
            ):
                states = None
        if states is not None:
            self._kept = States(mask, torch.cat(states)[torch.cat(places).argsort()])
        return logps, entropies if compute_entropy else None, None

    def keep_states(self) -> None:
        """Let the next call of `score_padded` keep its hidden states, unless they are larger than a GiB."""
        self._keeps, self._kept = True, None

    def kept_states(self, mask: Tensor) -> States | None:
        """The hidden states that were kept since `keep_states`, if they are of completions with this mask [B, T]."""
        kept, self._keeps, self._kept = self._kept, False, None
        return kept if kept is not None and torch.equal(kept.mask, mask.bool()) else None

    def packs(self, rows: Rows, chosen: Tensor, pass_name: str) -> list[Tensor]:
        """Indices of the chosen rows, cut to the limit of tokens in one forward pass (`rows.packs`)."""
        shared = pass_name == "packed" and self._trainer.args.share_prompts
        return packs(rows, chosen, self._limit(), shared=shared)

    def hidden(self, trunk: Any, rows: Rows, pass_name: str) -> Tensor:
        """[M, D] the hidden states from which the wanted tokens are predicted (`Scorer.hidden`)."""
        return self._scorer.hidden(trunk, rows, pass_name)

    def pass_of(self, model: Any) -> str:
        """The fastest pass that the model allows, "packed" or "padded"; for a plain one, "padded" comes nearest."""
        best = self._choice.best(model, self.unwrapped(model))
        return best if best == "packed" else "padded"

    def _limit(self) -> int | None:
        """The most tokens in one forward pass; None for no limit."""
        trainer = self._trainer
        if not self._row_wise() or trainer.accelerator.distributed_type in _LOCKSTEP:
            return None
        limit: int | None = trainer.args.max_tokens_per_micro_batch
        if limit is not None:
            return limit or None
        model = trainer.accelerator.unwrap_model(trainer.model)
        halved = (
            trainer.args.bf16
            or model.dtype == torch.bfloat16
            or computes_in_bfloat16(trainer.args, trainer.model)
        )
        return token_limit(model, in_bfloat16=halved)

    def _live_rows(self, batch: MicroBatch) -> Tensor:
        """[B] rows with response tokens; of these only those with an advantage, if nothing else can change the
        gradient."""
        trainer = self._trainer
        rows = batch.response_mask.any(dim=1)
        idle = trainer.beta == 0.0 and trainer.objective.idle_without_advantage
        if trainer.args.skip_zero_advantage and idle and self._row_wise():
            return rows & batch.has_advantage
        return rows

    def _row_wise(self) -> bool:
        """Whether a row's loss depends on no other row. The tokens of highest entropy are those of a micro-batch."""
        return self._trainer.objective.row_wise and self._trainer.args.top_entropy_quantile == 1.0

    def unwrapped(self, model: Any) -> Any:
        """The transformers model inside of what distribution, compilation and adapters wrap around it."""
        inner = self._trainer.accelerator.unwrap_model(model)
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def _autocast(self) -> Any:
        args, model = self._trainer.args, self._trainer.model
        if args.bf16 or args.fp16 or model.dtype != torch.float32:
            return self._trainer.accelerator.autocast()
        if computes_in_bfloat16(args, model):
            return torch.autocast(model.device.type, torch.bfloat16)
        return nullcontext()


def learns_from_entropy(trainer: TrainerView) -> bool:
    """Whether the loss holds an entropy bonus. Only TRL's own pass gives entropies with a gradient."""
    return bool(trainer.args.entropy_coef != 0.0 or trainer.args.use_adaptive_entropy)
