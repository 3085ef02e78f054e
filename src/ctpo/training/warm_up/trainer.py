"""`WarmUpTrainer`: TRL's SFTTrainer with the forward pass of a policy step.

A supervised loss is a policy loss in which every token that the model is to write has the weight 1:

    L = −Σ log p(y_t) / N,  over the N such tokens of an optimizer step.

So the pass that scores responses (step.md) computes it: rows packed without padding, the head on the tokens of the loss
alone, parts of a limited number of tokens, and bfloat16 products where they are faster.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Final

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTTrainer

from ctpo import fast_cpu
from ctpo.runs.identity import describe_model
from ctpo.training.config.warm_up import WarmUpRecipe
from ctpo.training.scoring.choose import PassChoice, one_by_one
from ctpo.training.scoring.precision import wants_bfloat16
from ctpo.training.scoring.rows import Rows, packs, token_limit
from ctpo.training.scoring.scorer import Scorer, ScoringOptions
from ctpo.training.step.checkpoints import Checkpoints

_IGNORED: Final = -100
"""transformers counts the labels that are not this."""


class WarmUpTrainer(Checkpoints, SFTTrainer):  # type: ignore[misc]
    """Trains a model on demonstrations.

    Args:
        model, args, processing_class, peft_config: as in SFTTrainer.
        rows: the demonstrations, as `warm_up.rows` makes them.
        recipe: the settings beside SFTTrainer's.
    """

    _tag_names = ("trl", "ctpo")

    def __init__(self, model: Any, args: Any, rows: Any, recipe: WarmUpRecipe, **others: Any) -> None:
        if args.device.type == "cpu":
            fast_cpu.keep_freed_memory()
        self._recipe = recipe
        self.run_identity: dict[str, Any] = {}
        """What checkpoints say about the run."""
        self.tokens = 0
        """Tokens that the last optimizer step ran through the model."""
        pad = others["processing_class"].pad_token_id
        super().__init__(
            model,
            args,
            data_collator=lambda rows: collate(rows, pad),
            train_dataset=Dataset.from_list(list(rows)),
            **others,
        )
        self.model_accepts_loss_kwargs = True  # the loss divides by the tokens of the whole optimizer step
        self._scorer = Scorer(ScoringOptions(), autocast=self._autocast)
        self._choice = PassChoice(self._scorer)
        self.model_facts = describe_model(self.model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The micro-batch's share of the loss. All parts of it but the last have been through the backward pass."""
        rows = _rows_of(inputs)
        tokens = rows.wanted.sum() if num_items_in_batch is None else num_items_in_batch
        scale = self.accelerator.num_processes if num_items_in_batch is not None else 1
        self.tokens += int(rows.prompt_mask.sum() + rows.completion_mask.sum())
        pass_name = self._choice.best(model, self._unwrapped(model))
        parts = packs(rows, torch.arange(len(rows), device=rows.wanted.device), self._limit(), shared=False)
        done = torch.zeros((), device=rows.wanted.device)
        for index in parts[:-1]:
            with self.accelerator.no_sync(model):
                loss = self._negative(model, rows.take(index), pass_name) / tokens * scale
                self.accelerator.backward(loss)
            done += loss.detach()
        return self._negative(model, rows.take(parts[-1]), pass_name) / tokens * scale + done

    @torch.no_grad()
    def mean_loss(self, demonstrations: Any) -> float:
        """The mean of −log p over the tokens of these demonstrations, in nats."""
        self.model.eval()
        rows = _rows_of(collate(demonstrations, self.processing_class.pad_token_id)).to(self.model.device)
        pass_name = self._choice.best(self.model, self._unwrapped(self.model))
        parts = packs(rows, torch.arange(len(rows), device=rows.wanted.device), self._limit(), shared=False)
        total = sum(float(self._negative(self.model, rows.take(index), pass_name)) for index in parts)
        self.model.train()
        return total / int(rows.wanted.sum())

    def _negative(self, model: Any, rows: Rows, pass_name: str) -> Tensor:
        """The sum of −log p over the tokens of the loss."""
        if pass_name == "plain":
            with self._autocast():
                return -(one_by_one(model, rows, 1.0) * rows.wanted).sum()
        return -self._scorer.score(model, self._unwrapped(model), rows, pass_name)[0].sum()

    def _limit(self) -> int | None:
        limit = self._recipe.max_tokens_per_micro_batch
        if limit is not None:
            return limit or None
        model = self.accelerator.unwrap_model(self.model)
        return token_limit(model, in_bfloat16=self.args.bf16 or self._in_bfloat16())

    def _unwrapped(self, model: Any) -> Any:
        inner = self.accelerator.unwrap_model(model)
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def _in_bfloat16(self) -> bool:
        return wants_bfloat16(self.model, self._recipe.compute_dtype, exact_anchor=False)

    def _autocast(self) -> Any:
        if self.args.bf16 or self.model.dtype != torch.float32:
            return self.accelerator.autocast()
        return (
            torch.autocast(self.model.device.type, torch.bfloat16) if self._in_bfloat16() else nullcontext()
        )


def collate(rows: Any, pad: int) -> dict[str, Tensor]:
    """Demonstrations as padded tensors: prompts on the left, responses on the right, and labels that are counted."""
    prompts, completions = (
        [torch.tensor(row[name]) for row in rows] for name in ("prompt_ids", "completion_ids")
    )
    masks = [torch.tensor(row["response_mask"]) for row in rows]
    wanted = _padded(masks, 0).bool()
    ids = _padded(completions, pad)
    labels = ids.masked_fill(~wanted, _IGNORED)
    return {
        "prompt_ids": _padded(prompts, pad, left=True),
        "prompt_mask": _padded([torch.ones_like(each) for each in prompts], 0, left=True),
        "completion_ids": ids,
        "completion_mask": _padded([torch.ones_like(each) for each in completions], 0),
        "labels": labels,
        "shift_labels": labels,
    }


def _padded(rows: list[Tensor], value: int, *, left: bool = False) -> Tensor:
    side = "left" if left else "right"
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def _rows_of(inputs: dict[str, Tensor]) -> Rows:
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    return Rows(**{name: inputs[name] for name in names}, wanted=inputs["labels"] != _IGNORED)
