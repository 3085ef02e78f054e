"""Which rows go through the model together: whole prompt groups where they fit, bounded by tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Numbers a layer of the Llama family keeps for the backward pass, a token: norms, projections, rotation, attention
# and residual in units of the width; gate, up, activation and product in units of the inner width.
_PER_WIDTH, _PER_INNER = 16, 4
_SHARE = 3
"""Bytes of activations for a byte of float32 weights; weights, gradients and Adam's moments have four."""


@dataclass(frozen=True)
class Rows:
    """Prompts and completions as TRL pads them, and the tokens wanted of them.

    B rows, P prompt positions (padded on the left), T completion positions (padded on the right).
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    wanted: Tensor
    """[B, T] true on tokens to score."""

    def __len__(self) -> int:
        return int(self.prompt_ids.shape[0])

    def take(self, index: Tensor) -> Rows:
        """These rows, in this order."""
        return Rows(**{name: value.index_select(0, index) for name, value in vars(self).items()})

    def groups(self) -> Tensor:
        """[B] the same number for rows of the same prompt."""
        prompts = torch.where(self.prompt_mask.bool(), self.prompt_ids, -1)
        groups: Tensor = torch.unique(prompts, dim=0, return_inverse=True)[1]
        return groups

    def prompt_lengths(self) -> Tensor:
        """[B] tokens of each prompt."""
        return self.prompt_mask.sum(dim=1)

    def reach(self) -> Tensor:
        """[B] completion tokens up to the last one wanted."""
        place = torch.arange(1, self.wanted.shape[1] + 1, device=self.wanted.device)
        return (self.wanted * place).amax(dim=1)


def packs(rows: Rows, chosen: Tensor, limit: int | None, *, shared: bool) -> list[Tensor]:
    """Split the chosen rows into as few packs as the token limit lets; one row alone may exceed it.

    Rows of one prompt stay together, longest first. A group that fits into a pack is not begun in one whose rest it
    exceeds; a larger one is cut, its prompt then counted in each part. Deterministic.

    Args:
        rows: all rows.
        chosen: [b] indices of rows to score.
        limit: tokens a pack, None for no limit.
        shared: whether a prompt counts once for its group.
    """
    if limit is None or len(chosen) == 0:
        return [chosen]
    prompts, reach = rows.prompt_lengths().tolist(), rows.reach().tolist()
    groups = rows.groups().tolist()
    order = sorted(chosen.tolist(), key=lambda row: (groups[row], -reach[row], row))
    whole: dict[int, int] = {}  # tokens of a group that shares its prompt
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
    """Tokens whose activations take three times the memory of the model's float32 weights, or half a GiB.

    Args:
        model: of transformers.
        in_bfloat16: whether its products are, which halves activations.
    """
    config = model.config.get_text_config()
    width = model.get_input_embeddings().embedding_dim
    inner = getattr(config, "intermediate_size", None) or 4 * width
    numbers = config.num_hidden_layers * (_PER_WIDTH * width + _PER_INNER * inner)
    numbers += model.get_input_embeddings().num_embeddings
    budget = max(_SHARE * 4 * model.num_parameters(), 1 << 29)
    return max(256, int(budget / ((2 if in_bfloat16 else 4) * numbers)))
