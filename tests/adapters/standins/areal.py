"""AReaL: the policy loss, and engines that call it for packed micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

RejectionSamplingConfig = Any
PROX_LOGP_METHOD_RECOMPUTE = "recompute"
stats_tracker = SimpleNamespace(scalar=lambda **figures: recorded.append(figures))
recorded: list[dict[str, float]] = []


def grpo_loss_fn(
    logprobs: Tensor,
    entropy: Tensor,
    input_data: dict,  # type: ignore[type-arg]
    eps_clip: float,
    eps_clip_higher: float | None,
    c_clip: float | None,
    rejection_sampling: RejectionSamplingConfig | None = None,
    m2_threshold: float | None = None,
    importance_sampling_level: str = "token",
    current_version: int | None = None,
    prox_logp_method: str = PROX_LOGP_METHOD_RECOMPUTE,
    use_sapo_loss: bool = False,
    sapo_tau_pos: float = 1.0,
    sapo_tau_neg: float = 1.05,
    use_cispo_loss: bool = False,
    use_decoupled_loss: bool = False,
    vocab_min_logits: Tensor | None = None,
    vocab_max_logits: Tensor | None = None,
    vocab_mean_logits: Tensor | None = None,
    vocab_norm_logits: Tensor | None = None,
):  # type: ignore[no-untyped-def]
    assert not logprobs.requires_grad, "only its records are wanted"
    recorded.append({"theirs": 1.0})
    return logprobs.sum()


class FSDPEngine:
    def __init__(self, config: Any) -> None:
        self.logprobs: list[Tensor] = config  # of each micro-batch, as a model would score them

    def train_batch(
        self,
        input_: list[dict[str, Any]] | dict[str, Any],
        loss_fn: Callable[..., Tensor],
        loss_weight_fn: Callable[[dict[str, Any]], Tensor],
    ) -> dict[str, float]:
        total = sum(loss_weight_fn(each) for each in input_)  # type: ignore[arg-type]
        loss = torch.zeros(())
        for logprobs, each in zip(self.logprobs, input_, strict=True):
            share = loss_weight_fn(each) / total  # type: ignore[arg-type]
            loss = loss + share * loss_fn(
                logprobs, logprobs.detach(), each, vocab_min_logits=logprobs.detach()
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.item()}


class MegatronEngine(FSDPEngine):
    def train_batch(
        self,
        input_: list[dict[str, Any]] | dict[str, Any],
        loss_fn: Callable[..., Tensor],
        loss_weight_fn: Callable[[dict[str, Any]], Tensor],
    ) -> dict[str, float]:
        return super().train_batch(input_, loss_fn, loss_weight_fn)


FSDPPPOActor = FSDPEngine
MegatronPPOActor = MegatronEngine
