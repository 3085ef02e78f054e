"""`Scorer`: log-probs and entropies of completion tokens, computing nothing that cannot change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ctpo import fast_cpu
from ctpo.training.scoring.head import Targets, scoring_head
from ctpo.training.scoring.rows import Rows
from ctpo.training.scoring.tree import grow, tree_attention_in


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Which computations the forward pass leaves out. None of them changes anything but rounding.

    Example:
        ScoringOptions(share_prompts=False).pack_rows  # True
    """

    pack_rows: bool = True
    """Leave out padding."""
    share_prompts: bool = True
    """Leave out repetitions of a prompt. Needs pack_rows."""
    completion_head: bool = True
    """Leave out the head on prompts, padding and tool tokens. The two options above need it."""
    fused_layers: bool = True
    """On a CPU, leave out passes over memory inside of norms and, in bfloat16, of attention."""


class Scorer:
    """Scores rows of a causal language model in one of two ways.

    "packed": one stream of tokens without padding, each prompt once. It suits models with rotary or learned positions
    whose attention goes through transformers' AttentionInterface.

    "padded": rows as they are, with the head on the wanted tokens only. It suits models with a linear head whose logits
    the model returns as they are.

    `PassChoice` says which of them a model allows.

    Args:
        options: what to leave out.
        temperature: the divisor of the logits.
        float32_head: whether the head computes in float32 under autocast too.
        autocast: a function that returns the context in which the model runs.
    """

    def __init__(
        self,
        options: ScoringOptions,
        *,
        temperature: float = 1.0,
        float32_head: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.options, self.temperature = options, temperature
        self._float32_head, self.autocast = float32_head, autocast

    def score(
        self, model: Any, unwrapped: Any, rows: Rows, pass_name: str, states: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probs [B, T] and entropies [B, T] of the wanted tokens, in nats, and 0 elsewhere.

        The log-probs are differentiable, the entropies are not. A row without a wanted token costs nothing.

        Args:
            model: as it is wrapped for training.
            unwrapped: the transformers model inside.
            rows: B rows, at least one of them with a wanted token.
            pass_name: "packed" or "padded".
            states: gets the hidden states [M, D] of the wanted tokens, in row-major order, without gradient.
        """
        live = rows.wanted.any(dim=1).nonzero()[:, 0]
        some = rows if len(live) == len(rows) else rows.take(live)
        with self._layout(unwrapped, some, pass_name) as (targets, inputs):
            head = unwrapped.get_output_embeddings()
            with scoring_head(head, targets, float32=self._float32_head, states=states):
                values: Tensor = model(**inputs, use_cache=False).logits[0]
        row, step = rows.wanted.nonzero(as_tuple=True)
        blank = values.new_zeros(rows.wanted.shape)
        logps = blank.index_put((row, step), values[:, 0])
        return logps, blank.index_put((row, step), values[:, 1].detach())

    def hidden(self, trunk: Any, rows: Rows, pass_name: str) -> Tensor:
        """[M, D] the hidden states from which the wanted tokens are predicted, in row-major order, differentiable.

        Args:
            trunk: a transformers model without a head, or what peft wraps around one.
            rows: B rows, each with a wanted token.
            pass_name: "packed" or "padded".
        """
        inner = trunk.get_base_model() if hasattr(trunk, "get_base_model") else trunk
        with self._layout(inner, rows, pass_name) as (targets, inputs):
            states: Tensor = trunk(**inputs, use_cache=False).last_hidden_state
        return states.reshape(-1, states.shape[-1]).index_select(0, targets.source)

    @contextmanager
    def _layout(self, unwrapped: Any, rows: Rows, pass_name: str) -> Iterator[tuple[Targets, dict[str, Any]]]:
        """A context to call a model in: the wanted tokens, and the inputs that hold the rows."""
        with ExitStack() as stack:
            if pass_name == "packed":
                tree, targets = grow(rows, temperature=self.temperature, shared=self.options.share_prompts)
                tree.whole_attention = self.options.fused_layers
                stack.enter_context(tree_attention_in(unwrapped.config.get_text_config()))
                inputs = {"input_ids": tree.ids, "position_ids": tree.positions, "ctpo_tree": tree}
            else:
                targets, inputs = self._padded(rows)
            stack.enter_context(self.autocast())
            if self.options.fused_layers and not recomputes_layers(unwrapped):
                stack.enter_context(fast_cpu.fused_norms(unwrapped))
            yield targets, inputs

    def _padded(self, rows: Rows) -> tuple[Targets, dict[str, Any]]:
        """The rows as TRL lays them out, without the padding that all of them have in common."""
        left = rows.prompt_ids.shape[1] - int(rows.prompt_lengths().max())
        right = int(rows.reach().max())
        ids = torch.cat([rows.prompt_ids[:, left:], rows.completion_ids[:, :right]], dim=1)
        mask = torch.cat([rows.prompt_mask[:, left:], rows.completion_mask[:, :right]], dim=1)
        row, step = rows.wanted.nonzero(as_tuple=True)
        source = row * ids.shape[1] + rows.prompt_ids.shape[1] - left + step - 1
        targets = Targets(source, rows.completion_ids[row, step], self.temperature)
        return targets, {"input_ids": ids, "attention_mask": mask}


def recomputes_layers(model: Any) -> bool:
    """Whether the backward pass runs layers again (activation checkpointing).

    It runs them after `Scorer` has left its contexts, so with the model's own attention and norms.
    """
    # Transformers before 5.2x has only the second name, and later versions warn when it is read.
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):
        if hasattr(type(model), name):
            return bool(getattr(model, name))
    return False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context without gradient and dropout. Afterwards every module has its mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
