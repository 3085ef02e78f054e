"""A few training responses token by token: their text, their drift, and what the objective clipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctpo.objectives import Details, Objective
from ctpo.training.scoring.microbatch import MicroBatch, Scored
from ctpo.training.view import TrainerView


def sample_rows(done: list[Scored], objective: Objective, tokenizer: Any, limit: int) -> list[dict[str, Any]]:
    """The first `limit` responses of a micro-batch whose advantage is not 0, each as one JSON object.

    Args:
        done: the micro-batch, in the parts in which it was scored.
        objective: the objective it was trained with.
        tokenizer: of the model.
        limit: the largest number of responses.
    """
    rows: list[dict[str, Any]] = []
    for part in done:
        live = part.batch.has_advantage & part.batch.response_mask.any(dim=1)
        chosen = live.nonzero()[: limit - len(rows), 0]
        if len(chosen):
            rows += _rows(part, chosen, objective, tokenizer)
    return rows


def _rows(part: Scored, chosen: Tensor, objective: Objective, tokenizer: Any) -> list[dict[str, Any]]:
    batch = part.batch.take(chosen)
    if part.details is None:
        logps, anchor_logps = part.logps[chosen], part.anchor_logps[chosen]
        signal, mask = part.signal[chosen], batch.response_mask
        details = objective.examine(logps, anchor_logps, signal, mask, batch.turn_ids)
    else:
        details = Details(**{name: value[chosen] for name, value in vars(part.details).items()})
    return [_row(batch, details, row, tokenizer) for row in range(len(chosen))]


def _row(batch: MicroBatch, details: Details, row: int, tokenizer: Any) -> dict[str, Any]:
    mask = batch.response_mask
    response = batch.completion_mask[row].bool()
    kept = details.kept[row][response].tolist()

    def column(values: Tensor) -> list[float | None]:
        rounded = values[row][response].double().cpu().numpy().round(6).tolist()
        return [value if usable else None for value, usable in zip(rounded, kept, strict=True)]

    prompt = batch.prompt_ids[row][batch.prompt_mask[row].bool()].tolist()
    advantage = batch.advantages[row]
    return {
        "prompt": "".join(pieces(tokenizer, prompt)),
        "advantage": float(advantage if advantage.ndim == 0 else advantage[mask[row]].float().mean()),
        "reward": None if batch.rewards is None else float(batch.rewards[row]),
        "tokens": pieces(tokenizer, batch.completion_ids[row][response].tolist()),
        "model": mask[row][response].int().tolist(),
        "log_ratio": column(details.log_ratio),
        "log_weight": column(details.log_weight),
        "clip": details.clip[row][response].tolist(),
        "position": details.position[row][response].tolist(),
    }


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """One string per token, which together are the decoded text.

    A character that is made of several tokens belongs to the last of them. The text of a token depends on the tokens
    before it. So each piece is what the token adds to the text since the last complete character. Decoding the whole
    text for each token would take quadratic time.
    """
    parts, start, end, before = [], 0, 0, ""
    for i in range(len(ids)):
        now = _decode(tokenizer, ids[start : i + 1])
        unfinished = now.endswith("�") and i + 1 < len(ids)
        if unfinished or not now.startswith(before):
            parts.append("")
            continue
        parts.append(now[len(before) :])
        start, end = end, i + 1
        before = _decode(tokenizer, ids[start:end])
    return parts


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def response_rewards(trainer: TrainerView, advantages: Tensor) -> Tensor | None:
    """[B] the reward of each response in this process: the weighted sum over the reward functions.

    None if TRL's log of rewards holds other responses than those of this rollout batch.

    Args:
        trainer: the trainer that has just generated the rollout batch.
        advantages: [B] or [B, T] of the rollout batch in this process.
    """
    logs, rows = trainer._logs["rewards"], len(advantages)
    first = trainer.accelerator.process_index * rows
    columns = [list(logs[name])[first : first + rows] for name in trainer.reward_func_names]
    if any(len(column) != rows for column in columns):
        return None
    rewards = torch.tensor(columns, dtype=torch.float32, device=advantages.device)
    weights: Tensor = trainer.reward_weights.to(rewards)
    return (rewards * weights[:, None]).nansum(dim=0)
