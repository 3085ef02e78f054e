"""Many rows as one stream of tokens without padding, which holds a prompt once for all of its completions.

The stream holds trunks and after them branches. A trunk is the prompt of several completions, or a whole row. A branch
is one completion of such a prompt. A token attends to the tokens before it in its own branch and trunk. Nothing else in
the model looks at other tokens, so with explicit positions every hidden state is the one that its row has alone. The
last token of a row predicts nothing that is scored, so it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ctpo import fast_cpu
from ctpo.training.scoring.head import Targets
from ctpo.training.scoring.rows import Rows

NAME = "ctpo_tree"


@dataclass
class Tree:
    """A stream of N tokens, and where its n trunks of at most L tokens and its b branches of at most C tokens stand."""

    ids: Tensor
    """[1, N]"""
    positions: Tensor
    """[1, N] the position of each token in its own row."""
    trunk: Tensor
    """[n, L] the place of each trunk's tokens in the stream, 0 beyond its end."""
    trunk_lengths: Tensor
    """[n]"""
    branch: Tensor
    """[b, C] the place of each branch's tokens in the stream, 0 beyond its end."""
    branch_lengths: Tensor
    """[b]"""
    parent: Tensor
    """[b] the trunk that each branch continues."""
    order: Tensor
    """[N] the place of each token of the stream among the padded tokens of all trunks and then all branches."""
    whole_attention: bool = True
    """Whether attention by whole products may be used where it is faster (`attend`)."""
    _masks: dict[int | None, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    def masks(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """Which keys a query may see in trunks and in branches, boolean.

        Args:
            window: the most tokens that a query sees, itself included; None for all before it.

        Returns:
            For trunks [1, 1, L, L], or None for all tokens before the query. For branches [b, 1, C, L' + C], where L'
            is the length of the longest prompt that they continue.
        """
        if window not in self._masks:
            self._masks[window] = (self._trunk_mask(window), self._branch_mask(window))
        return self._masks[window]

    @property
    def prefix(self) -> Tensor:
        """[b, L'] the places of the prompt of each branch, L' the length of the longest."""
        longest = int(self.trunk_lengths[self.parent].max()) if len(self.parent) else 0
        return self.trunk[self.parent, :longest]

    def _trunk_mask(self, window: int | None) -> Tensor | None:
        length = self.trunk.shape[1]
        if window is None or window >= length:
            return None
        place = torch.arange(length, device=self.trunk.device)
        behind = place[:, None] - place[None]
        return ((behind >= 0) & (behind < window))[None, None]

    def _branch_mask(self, window: int | None) -> Tensor:
        device = self.branch.device
        own, before = (
            torch.arange(width, device=device) for width in (self.branch.shape[1], self.prefix.shape[1])
        )
        start = self.trunk_lengths[self.parent][:, None, None]
        query = start + own[None, :, None]
        prompt = before[None, None].expand(len(start), len(own), -1)
        seen_prompt = prompt < start
        behind_prompt, behind_own = query - prompt, own[None, :, None] - own[None, None]
        seen_own = (behind_own >= 0).expand(len(start), -1, -1)
        if window is not None:
            seen_prompt = seen_prompt & (behind_prompt < window)
            seen_own = seen_own & (behind_own < window)
        return torch.cat([seen_prompt, seen_own], dim=2)[:, None]


def grow(rows: Rows, *, temperature: float, shared: bool) -> tuple[Tree, Targets]:
    """The rows as a tree, and their wanted tokens in row-major order.

    Args:
        rows: each with at least one prompt token and one wanted token.
        temperature: the divisor of the logits, which the targets carry to the head.
        shared: whether rows with the same prompt share it; otherwise every row is a trunk.
    """
    device = rows.prompt_ids.device
    prompts, reach = rows.prompt_lengths(), rows.reach()
    groups = rows.groups() if shared else torch.arange(len(rows), device=device)
    sizes = torch.bincount(groups)  # groups are numbered without gaps, so group g belongs to trunk g
    alone = sizes[groups] == 1
    # The first row of a group gives the trunk. A row that is alone in its group has its completion in the trunk too.
    first = torch.full_like(sizes, len(rows)).scatter_reduce(
        0, groups, torch.arange(len(rows), device=device), "amin"
    )
    branch_rows = (~alone).nonzero()[:, 0]
    tails = torch.where(alone, reach - 1, 0)[first]
    trunk_lengths = prompts[first] + tails
    branch_lengths = (reach - 1)[branch_rows]
    parent = groups[branch_rows]

    trunk_ids = torch.cat([rows.prompt_ids, rows.completion_ids], dim=1)[first]
    width = rows.prompt_ids.shape[1]
    place = torch.arange(trunk_ids.shape[1], device=device)[None]
    start = (width - prompts[first])[:, None]
    in_trunk = (place >= start) & (place < start + trunk_lengths[:, None])
    in_branch = torch.arange(rows.completion_ids.shape[1], device=device)[None] < branch_lengths[:, None]
    ids = torch.cat([trunk_ids[in_trunk], rows.completion_ids[branch_rows][in_branch]])
    trunk, trunk_valid = _places(trunk_lengths, 0)
    branch, branch_valid = _places(branch_lengths, int(trunk_lengths.sum()))
    positions = torch.cat(
        [
            torch.arange(trunk.shape[1], device=device).expand_as(trunk)[trunk_valid],
            (torch.arange(branch.shape[1], device=device)[None] + trunk_lengths[parent][:, None])[
                branch_valid
            ],
        ]
    )
    order = torch.cat([trunk_valid.reshape(-1), branch_valid.reshape(-1)]).nonzero()[:, 0]
    tree = Tree(ids[None], positions[None], trunk, trunk_lengths, branch, branch_lengths, parent, order)
    return tree, _targets(rows, tree, groups, alone, branch_rows, temperature)


def _places(lengths: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Places [k, longest] in the stream of k sequences one after another from `offset` on, and which of them exist."""
    longest = int(lengths.max()) if len(lengths) else 0
    within = torch.arange(longest, device=lengths.device)[None]
    valid = within < lengths[:, None]
    starts = offset + lengths.cumsum(0) - lengths
    return torch.where(valid, starts[:, None] + within, 0), valid


def _targets(
    rows: Rows,
    tree: Tree,
    groups: Tensor,
    alone: Tensor,
    branch_rows: Tensor,
    temperature: float,
) -> Targets:
    row, step = rows.wanted.nonzero(as_tuple=True)
    trunk_start = tree.trunk_lengths.cumsum(0) - tree.trunk_lengths
    branch_start = torch.zeros_like(groups)
    begins = tree.trunk_lengths.sum() + tree.branch_lengths.cumsum(0) - tree.branch_lengths
    branch_start[branch_rows] = begins
    last_of_prompt = (trunk_start[groups] + rows.prompt_lengths() - 1)[row]
    inside = torch.where(alone[row], last_of_prompt + step, branch_start[row] + step - 1)
    source = torch.where(step == 0, last_of_prompt, inside)
    return Targets(source, rows.completion_ids[row, step], temperature)


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    ctpo_tree: Tree,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a stream, [1, heads, N, width], along its tree; the form is that of transformers' interface.

    Raises:
        ValueError: if the model asks for something that attention along a tree does not do.
    """
    tree = ctpo_tree
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported:
        raise ValueError(f"attention along a tree has no {unsupported[0]}; set pack_rows=False")
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [N, heads, width]
    trunk_mask, branch_mask = tree.masks(kwargs.get("sliding_window"))
    options: dict[str, Any] = {"scale": scaling, "dropout": dropout, "whole": tree.whole_attention}
    trunk = attend(
        _gather(q, tree.trunk), _gather(k, tree.trunk), _gather(v, tree.trunk), trunk_mask, **options
    )
    out = trunk.transpose(1, 2).flatten(0, 1)
    if tree.branch.numel():
        seen = torch.cat([tree.prefix, tree.branch], dim=1)
        branch = attend(_gather(q, tree.branch), _gather(k, seen), _gather(v, seen), branch_mask, **options)
        out = torch.cat([out, branch.transpose(1, 2).flatten(0, 1)])
    return out.index_select(0, tree.order)[None], None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    whole: bool = True,
) -> Tensor:
    """softmax(scale · QKᵀ) V over the keys that each query sees, [n, heads, L, width].

    Args:
        query: [n, heads, L, width].
        key, value: [n, key heads, W, width]; several query heads may share a key head.
        mask: [n or 1, 1, L, W], true where a query may see a key, at least one key per query. None for causal
            attention with L = W.
        scale: the factor of the scores; None for 1/√width.
        dropout: the probability with which an attention weight is dropped.
        whole: whether attention by whole products may be used where it is faster.
    """
    n, heads, length, width = query.shape
    whole = whole and dropout == 0.0 and fast_cpu.prefers_whole_attention(query, key)
    if mask is None and not whole:
        grouped = heads != key.shape[1]
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=grouped, dropout_p=dropout, scale=scale
        )
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()[None, None]
    # Query heads that share a key head become further queries of it, so that no key is copied.
    queries = query.reshape(n, key.shape[1], -1, width)
    seen = mask.repeat(1, 1, heads // key.shape[1], 1)
    if whole:
        out = fast_cpu.whole_attention(queries, key, value, seen, width**-0.5 if scale is None else scale)
    else:
        out = scaled_dot_product_attention(
            queries, key, value, attn_mask=seen, dropout_p=dropout, scale=scale
        )
    return out.reshape(n, heads, length, -1)


def _gather(stream: Tensor, places: Tensor) -> Tensor:
    """[k, heads, L, width]: the stream [N, heads, width] at the places [k, L]."""
    return stream.index_select(0, places.reshape(-1)).view(*places.shape, *stream.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def tree_attention_in(config: Any) -> Iterator[None]:
    """A context in which the model with this configuration attends along the tree that it is called with."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
