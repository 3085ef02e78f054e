"""`Scorer`: log-probs of rows under a model, by the shortest way that model allows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ctpo.cpu.norms import fused_norms
from ctpo.training.scoring.head import Targets, scoring_head
from ctpo.training.scoring.rows import Rows
from ctpo.training.scoring.tree import grow, tree_attention_in

PASSES = ("packed", "padded", "plain")


class SlowPassNote(UserWarning):
    """A faster forward pass was asked for than this model allows."""


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What the forward pass leaves out; each changes nothing but the rounding."""

    pack_rows: bool = True
    """Padding."""
    share_prompts: bool = True
    """Repeated prompts; needs pack_rows."""
    completion_head: bool = True
    """The head on prompts, padding and tool tokens; needed by the two above."""
    fused_layers: bool = True
    """On a CPU, passes over memory inside of norms and, in bfloat16, of attention."""


class Scorer:
    """Scores rows of a causal language model, with fallback.

    `packed`: one stream without padding, each prompt once (a model with rotary or learned positions whose attention
    goes through transformers' AttentionInterface). `padded`: rows as they are, the head on wanted tokens only (a
    linear head whose logits the model returns as they are). `plain`: not here, the caller's own pass. Which of them a
    model allows is tried once, on a few tokens, against a row at a time.
    """

    def __init__(
        self,
        levers: Levers,
        *,
        temperature: float = 1.0,
        float32_head: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.levers, self.temperature = levers, temperature
        self._float32_head, self.autocast = float32_head, autocast
        self._allowed: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def way(self, model: nn.Module, unwrapped: nn.Module) -> str:
        """The best pass the levers and the model allow, one of PASSES."""
        if not self.levers.completion_head:
            return "plain"
        wanted = "packed" if self.levers.pack_rows else "padded"
        if _recomputes(unwrapped):
            wanted = "padded"
        best = self._allowed.get(unwrapped)
        if best is None:
            best = self._allowed[unwrapped] = self._try(model, unwrapped, wanted)
        return max(wanted, best, key=PASSES.index)

    def score(self, model: Any, unwrapped: Any, rows: Rows, way: str) -> tuple[Tensor, Tensor]:
        """Log-probs [B, T] and entropies [B, T] of the wanted tokens in nats, 0 elsewhere; rows without one cost
        nothing. The log-probs are differentiable, the entropies not.

        Args:
            model: as it is wrapped for training.
            unwrapped: the transformers model inside.
            rows: of B rows.
            way: "packed" or "padded".
        """
        live = rows.wanted.any(dim=1).nonzero()[:, 0]
        some = rows if len(live) == len(rows) else rows.take(live)
        forward = self._packed if way == "packed" else self._padded
        values = forward(model, unwrapped, some)
        row, step = rows.wanted.nonzero(as_tuple=True)
        blank = values.new_zeros(rows.wanted.shape)
        logps = blank.index_put((row, step), values[:, 0])
        return logps, blank.index_put((row, step), values[:, 1].detach())

    def _packed(self, model: Any, unwrapped: Any, rows: Rows) -> Tensor:
        tree, targets = grow(rows, temperature=self.temperature, shared=self.levers.share_prompts)
        tree.whole_attention = self.levers.fused_layers
        with tree_attention_in(unwrapped.config.get_text_config()):
            return self._forward(
                model, unwrapped, targets, input_ids=tree.ids, position_ids=tree.positions, ctpo_tree=tree
            )

    def _padded(self, model: Any, unwrapped: Any, rows: Rows) -> Tensor:
        """As TRL lays rows out, padding that no row of these needs cut off on both sides."""
        left = rows.prompt_ids.shape[1] - int(rows.prompt_lengths().max())
        right = int(rows.reach().max())
        ids = torch.cat([rows.prompt_ids[:, left:], rows.completion_ids[:, :right]], dim=1)
        mask = torch.cat([rows.prompt_mask[:, left:], rows.completion_mask[:, :right]], dim=1)
        row, step = rows.wanted.nonzero(as_tuple=True)
        source = row * ids.shape[1] + rows.prompt_ids.shape[1] - left + step - 1
        targets = Targets(source, rows.completion_ids[row, step], self.temperature)
        return self._forward(model, unwrapped, targets, input_ids=ids, attention_mask=mask)

    def _forward(self, model: Any, unwrapped: Any, targets: Targets, **inputs: Any) -> Tensor:
        """[M, 2] log-probs and entropies of the targets."""
        with ExitStack() as stack:
            stack.enter_context(self.autocast())
            if self.levers.fused_layers and not _recomputes(unwrapped):
                stack.enter_context(fused_norms(unwrapped))
            head = unwrapped.get_output_embeddings()
            stack.enter_context(scoring_head(head, targets, float32=self._float32_head))
            out: Tensor = model(**inputs, use_cache=False).logits
        return out[0]

    def _try(self, model: Any, unwrapped: Any, wanted: str) -> str:
        """The first of the passes from `wanted` on that agrees with single rows on this model."""
        from ctpo.training.scoring.trial import disagreement

        reason = ""
        for way in PASSES[PASSES.index(wanted) : -1]:
            problem = disagreement(self, model, unwrapped, way)
            if problem is None:
                break
            reason = reason or f"{way}: {problem}"
        else:
            way = "plain"
        if way != wanted:
            warnings.warn(
                f"{type(unwrapped).__name__} is scored by the {way} pass, not the {wanted} one ({reason}); "
                "steps are slower for it",
                SlowPassNote,
                stacklevel=2,
            )
        return way


def _recomputes(model: Any) -> bool:
    """Whether the backward pass runs layers again: outside of this pass, with the attention and norms of the model."""
    for name in (
        "is_activation_checkpointing",
        "is_gradient_checkpointing",
    ):  # the second before transformers 5.2x
        if hasattr(type(model), name):
            return bool(getattr(model, name))
    return False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradient and dropout, each module's mode restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
