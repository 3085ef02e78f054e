"""`Rows`: prompts and completions to score, and how they are split into packs of a limited number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_PER_WIDTH, _PER_INNER = 16, 4
"""Numbers that a layer of the Llama family keeps for the backward pass, per token.

Norms, projections, rotation, attention and residual are counted in units of the width. Gate, up, activation and product
are counted in units of the inner width.
"""
_SHARE = 3
"""Bytes of activations per byte of float32 weights. Weights, gradients and Adam's moments together have four."""
_SMALLEST_BUDGET = 1 << 29


@dataclass(frozen=True)
class Rows:
    """B prompts and completions as TRL pads them: P prompt tokens (left) and T completion tokens (right)."""

    prompt_ids: Tensor
    """[B, P]"""
    prompt_mask: Tensor
    """[B, P] 1 on tokens, 0 on padding."""
    completion_ids: Tensor
    """[B, T]"""
    completion_mask: Tensor
    """[B, T] 1 on tokens, 0 on padding."""
    wanted: Tensor
    """[B, T] true on the tokens to score."""

    def __len__(self) -> int:
        return int(self.prompt_ids.shape[0])

    def take(self, index: Tensor) -> Rows:
        """The rows with these indices, in this order."""
        return Rows(**{name: value.index_select(0, index) for name, value in vars(self).items()})

    def to(self, device: torch.device) -> Rows:
        """The rows on this device."""
        return Rows(**{name: value.to(device) for name, value in vars(self).items()})

    def groups(self) -> Tensor:
        """[B] a number for each row, the same for rows with the same prompt, counted from 0 without gaps."""
        prompts = torch.where(self.prompt_mask.bool(), self.prompt_ids, -1)
        groups: Tensor = torch.unique(prompts, dim=0, return_inverse=True)[1]
        return groups

    def prompt_lengths(self) -> Tensor:
        """[B] how many tokens each prompt has."""
        return self.prompt_mask.sum(dim=1)

    def reach(self) -> Tensor:
        """[B] how many completion tokens there are up to the last wanted one."""
        place = torch.arange(1, self.wanted.shape[1] + 1, device=self.wanted.device)
        return (self.wanted * place).amax(dim=1)


def packs(rows: Rows, chosen: Tensor, limit: int | None, *, shared: bool) -> list[Tensor]:
    """Indices of the chosen rows in packs that keep to a limit of tokens; a single row may exceed it.

    Rows with the same prompt form a group and stay together, the longest first. A group that fits into a pack starts a
    new one rather than being cut. A larger group is cut, and its prompt then counts in each pack. The result depends on
    nothing but the arguments.

    Args:
        rows: all rows.
        chosen: [b] indices of the rows to score.
        limit: the most tokens per pack; None for no limit.
        shared: whether a prompt counts once for all its rows in a pack.
    """
    if limit is None or len(chosen) == 0:
        return [chosen]
    prompts, reach = rows.prompt_lengths().tolist(), rows.reach().tolist()
    groups = rows.groups().tolist()
    order = sorted(chosen.tolist(), key=lambda row: (groups[row], -reach[row], row))
    whole: dict[int, int] = {}  # tokens of each group if it shares its prompt
    for row in order:
        whole[groups[row]] = whole.get(groups[row], prompts[row]) + reach[row]
    parts: list[list[int]] = [[]]
    used, last = 0, None
    for row in order:
        fresh = groups[row] != last
        cost = reach[row] + (prompts[row] if fresh or not shared else 0)
        wanted = whole[groups[row]] if shared and fresh and whole[groups[row]] <= limit else cost
        if parts[-1] and used + wanted > limit:
            parts.append([])
            used, cost = 0, reach[row] + prompts[row]
        parts[-1].append(row)
        used, last = used + cost, groups[row]
    return [torch.tensor(sorted(part), dtype=torch.long, device=chosen.device) for part in parts]


def token_limit(model: Any, *, in_bfloat16: bool = False) -> int:
    """How many tokens have activations of three times the memory of the model's float32 weights, or of half a GiB.

    The larger of the two counts, and the result is at least 256.

    Args:
        model: a transformers model.
        in_bfloat16: whether it computes in bfloat16, which halves its activations.
    """
    config = model.config.get_text_config()
    width = model.get_input_embeddings().embedding_dim
    inner = getattr(config, "intermediate_size", None) or 4 * width
    numbers = config.num_hidden_layers * (_PER_WIDTH * width + _PER_INNER * inner)
    numbers += model.get_input_embeddings().num_embeddings
    budget = max(_SHARE * 4 * model.num_parameters(), _SMALLEST_BUDGET)
    return max(256, int(budget / ((2 if in_bfloat16 else 4) * numbers)))
