"""A few training responses, token by token: the text, what was drift in it, and what the objective clipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctpo.objectives import Details, Objective
from ctpo.training.scoring.microbatch import Scored, loss_mask, take_rows, weighted_advantages


def sample_rows(done: list[Scored], objective: Objective, tokenizer: Any, limit: int) -> list[dict[str, Any]]:
    """The first `limit` responses with an advantage of a micro-batch, each as one JSON object.

    Args:
        done: the micro-batch in the parts it was scored in.
        objective: it was trained with.
        tokenizer: of the model.
        limit: number of responses.
    """
    rows: list[dict[str, Any]] = []
    for part in done:
        advantages = part.inputs["advantages"]
        live = (advantages.reshape(len(advantages), -1) != 0).any(dim=1) & loss_mask(part.inputs).any(dim=1)
        chosen = live.nonzero()[: limit - len(rows), 0]
        if len(chosen):
            rows += _rows(part, chosen, objective, tokenizer)
    return rows


def _rows(part: Scored, chosen: Tensor, objective: Objective, tokenizer: Any) -> list[dict[str, Any]]:
    inputs = take_rows(part.inputs, chosen, len(part.logps))
    mask = loss_mask(inputs)
    if part.details is None:
        signal = weighted_advantages(inputs)
        details = objective.examine(part.logps[chosen], part.anchor[chosen], signal, mask)
    else:
        details = Details(**{name: value[chosen] for name, value in vars(part.details).items()})
    return [_row(inputs, details, mask, row, tokenizer) for row in range(len(chosen))]


def _row(inputs: dict[str, Any], details: Details, mask: Tensor, row: int, tokenizer: Any) -> dict[str, Any]:
    response = inputs["completion_mask"][row].bool()
    kept = details.kept[row][response].tolist()

    def column(values: Tensor) -> list[float | None]:
        rounded = values[row][response].double().cpu().numpy().round(6).tolist()
        return [value if usable else None for value, usable in zip(rounded, kept, strict=True)]

    prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
    reward: Tensor | None = inputs.get("reward")
    advantage = inputs["advantages"][row]
    return {
        "prompt": "".join(pieces(tokenizer, prompt)),
        "advantage": float(advantage if advantage.ndim == 0 else advantage[mask[row]].float().mean()),
        "reward": None if reward is None else float(reward[row]),
        "tokens": pieces(tokenizer, inputs["completion_ids"][row][response].tolist()),
        "model": mask[row][response].int().tolist(),
        "log_ratio": column(details.log_ratio),
        "log_weight": column(details.log_weight),
        "clip": details.clip[row][response].tolist(),
        "position": details.position[row][response].tolist(),
    }


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """One string a token that join to the decoded text; a character of several tokens is the last one's.

    A token's text depends on those before it, so each is what it adds to the text of the tokens since the last whole
    character; the text so far is not decoded again, which would take quadratic time.
    """
    found, start, end, before = [], 0, 0, ""
    for i in range(len(ids)):
        now = _decode(tokenizer, ids[start : i + 1])
        unfinished = now.endswith("�") and i + 1 < len(ids)
        if unfinished or not now.startswith(before):
            found.append("")
            continue
        found.append(now[len(before) :])
        start, end = end, i + 1
        before = _decode(tokenizer, ids[start:end])
    return found


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def attach_rewards(rollouts: dict[str, Any], trainer: Any) -> None:
    """Put each response's reward, the weighted sum over reward functions, beside its advantage."""
    logs, rows = trainer._logs["rewards"], len(rollouts["advantages"])
    first = trainer.accelerator.process_index * rows
    columns = [list(logs[name])[first : first + rows] for name in trainer.reward_func_names]
    if any(len(column) != rows for column in columns):  # TRL keeps those of one rollout batch
        return
    rewards = torch.tensor(columns, dtype=torch.float32, device=rollouts["advantages"].device)
    weights = trainer.reward_weights.to(rewards)
    rollouts["reward"] = (rewards * weights[:, None]).nansum(dim=0)
