"""Responses completed by vLLM over several turns, token ids in and token ids out.

vLLM completes all rows. Between two completions, a partner answers the turns of all rows together, and its answers are
appended as token ids. A row's earlier tokens are sent again as ids, which vLLM's prefix cache makes cheap, and never as
text. So a response is the very sequence that the model saw, as with `TransformersEngine`.

Nothing here imports vLLM. The engine is given a `Completer`: `ctpo.training.sampling.vllm` has one for TRL's colocated
model and for TRL's client of a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ctpo.old_names import old_keywords
from ctpo.rollout.records import Rollout
from ctpo.rollout.remote.row import CompletionRequest, Row, completion_ended
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.turns import Partner


class Completion(NamedTuple):
    """The answer to one request."""

    ids: list[int]
    logps: list[float]
    """The log-probability of each token in nats."""


class Completer(Protocol):
    """Completes token ids with vLLM, in this process or behind a server."""

    context: int | None
    """How many tokens a prompt and its response may have together; None if unknown."""

    def awake(self) -> AbstractContextManager[None]:
        """A context that holds the model ready over several calls of `complete`."""

    def anyone(self, live: bool) -> bool:
        """Whether this process or any that completes together with it has requests left.

        Args:
            live: whether this process has.
        """

    def complete(
        self, requests: Sequence[CompletionRequest], sampling: Sampling, eos: Sequence[int]
    ) -> list[Completion]:
        """One completion for each request, in order.

        Every process calls it equally often, without requests if it has none left.
        """


class VLLMEngine:
    """Samples responses as `TransformersEngine` does, with vLLM in place of the model.

    Args:
        completer: completes token ids.
        tokenizer: the model's tokenizer.
        eos_token_ids: the token ids that end a response.
    """

    def __init__(
        self, completer: Completer, tokenizer: PreTrainedTokenizerBase, *, eos_token_ids: Iterable[int]
    ) -> None:
        self.tokenizer = tokenizer
        self._completer = completer
        self._eos = sorted(set(eos_token_ids))

    def room(self, sampling: Sampling) -> int | None:
        """The longest prompt, in tokens, that leaves room for the longest response; None if there is no limit."""
        context = self._completer.context
        return None if context is None else context - sampling.max_new_tokens

    @old_keywords(tools="partner")
    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        partner: Partner | None = None,
        uniforms: Tensor | None = None,
    ) -> list[Rollout]:
        """One response for each prompt, in order.

        Args:
            prompts, sampling, partner: as for `TransformersEngine.generate`.
            uniforms: [prompts, max_new_tokens]; every completion gets a seed of its own from these.

        Raises:
            UserError: if a prompt is empty or leaves no room in the model's context.
        """
        sampling.check_prompts(
            prompts,
            self._completer.context,
            owner="vLLM",
            advice="shorten the prompt, lower max_new_tokens or raise vllm_max_model_length",
        )
        if partner is not None:
            partner.begin(self.tokenizer, prompts)
        rows = [
            Row(i, prompt, sampling.max_new_tokens, None if uniforms is None else uniforms[i])
            for i, prompt in enumerate(prompts)
        ]
        live = rows
        with self._completer.awake():
            while self._completer.anyone(bool(live)):
                requests = [row.request(partner) for row in live]
                completions = self._completer.complete(requests, sampling, self._eos)
                for row, request, (ids, logps) in zip(live, requests, completions, strict=True):
                    ended = completion_ended(self.tokenizer, self._eos, request, ids)
                    row.append_sampled(ids, logps, ended=ended, eos=self._eos)
                if partner is not None:
                    _converse(live, partner)
                live = [row for row in live if not row.done]
        return [row.rollout for row in rows]


def _converse(rows: Sequence[Row], partner: Partner) -> None:
    """Show the partner the turns that ended with the last completions, and append its answers."""
    shown = [row for row in rows if row.is_shown(partner)]
    if not shown:
        return
    for row, answer in zip(shown, partner.answer([row.turn() for row in shown]), strict=True):
        if answer is not None:
            row.append_answer(answer)
