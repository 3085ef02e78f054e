"""Sampling in this process, with any causal language model of transformers.

All rows of a batch advance together, one token per step. A partner's answer, such as a tool's output, enters the row's
cache directly. So a further turn needs no second prefill, and nothing is tokenised again. A long answer is read in one
forward pass of the rows concerned. A short one is read token by token in place of sampled tokens, which costs no extra
pass while other rows still decode.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctpo import fast_cpu
from ctpo.old_names import old_keywords
from ctpo.rollout.local.closing import closing_tokens
from ctpo.rollout.local.decoders import Decoder, decoder_for
from ctpo.rollout.local.exchange import Exchange
from ctpo.rollout.local.responses import Responses
from ctpo.rollout.records import Rollout
from ctpo.rollout.sampling import Sampling, sample_tokens
from ctpo.rollout.turns import Answer, Partner, Turn

_CHUNK = 16
"""An answer of at least this many tokens is read in a pass of its own. A pass for fewer tokens would cost more than it
saves."""


class TransformersEngine:
    """Samples responses with a transformers model, and inserts what a partner answers to the model's turns.

    Args:
        model: a causal language model. Its dtype and device stay as they are; it samples in evaluation mode and
            without gradient.
        tokenizer: the model's tokenizer, with a pad token.
        eos_token_ids: the token ids that end a response; None takes the tokenizer's and the generation config's.
        batch_size: how many rows are decoded at once; None decodes all together.
        in_bfloat16: whether to multiply in bfloat16, from copies of the weights that each `generate` makes.

    Example:
        engine = TransformersEngine(model, tokenizer)
        with open_tools(task) as tools:
            rollouts = engine.generate(prompts, Sampling(max_new_tokens=96), partner=tools)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: Iterable[int] | None = None,
        batch_size: int | None = None,
        in_bfloat16: bool = False,
    ) -> None:
        self._products: Callable[[Any], AbstractContextManager[Any]]
        self._products = fast_cpu.bfloat16_products if in_bfloat16 else nullcontext
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        ids = _eos_ids(model, tokenizer) if eos_token_ids is None else eos_token_ids
        self._eos = torch.tensor(sorted(ids), device=model.device)

    @property
    def device(self) -> torch.device:
        """The device that a random generator for `generate` must be on."""
        device: torch.device = self.model.device
        return device

    @old_keywords(tools="partner")
    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        partner: Partner | None = None,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
        limits: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """One response for each prompt, in order. Equal prompts are read once.

        Args:
            prompts: the token ids of each prompt.
            sampling: how tokens are drawn.
            partner: answers the model's turns, for example by running the programs in them; None for none.
            generator: a source of randomness that the rows share; torch's global one if None.
            uniforms: [prompts, max_new_tokens], random numbers for each row (`row_uniforms`) in place of a generator.
                A response is then the same whatever else is decoded.
            limits: the most tokens of each response, from 1 to `max_new_tokens`; None for that number. Prompts are
                then not checked.

        Raises:
            UserError: if a prompt is empty or leaves no room in the model's context.
        """
        if limits is None:
            sampling.check_prompts(prompts, self._context())
            limits = [sampling.max_new_tokens] * len(prompts)
        if partner is not None:
            partner.begin(self.tokenizer, prompts)
        was_training = self.model.training
        self.model.eval()
        try:
            rows = self.batch_size or max(len(prompts), 1)
            noise = None if uniforms is None else uniforms.to(self.model.device)
            with self._products(self.model), fast_cpu.fast_products(self.model):
                return [
                    rollout
                    for i in range(0, len(prompts), rows)
                    for rollout in self._decode(
                        list(prompts[i : i + rows]),
                        sampling,
                        partner,
                        i,
                        generator,
                        None if noise is None else noise[i : i + rows],
                        limits[i : i + rows],
                    )
                ]
        finally:
            self.model.train(was_training)

    def room(self, sampling: Sampling) -> int | None:
        """The longest prompt, in tokens, that leaves room for the longest response; None if there is no limit."""
        context = self._context()
        return None if context is None else context - sampling.max_new_tokens

    def _context(self) -> int | None:
        limit: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit

    def _decode(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        partner: Partner | None,
        first: int,
        generator: torch.Generator | None,
        uniforms_BN: Tensor | None,
        limits: Sequence[int],
    ) -> list[Rollout]:
        responses = Responses(prompts, limits, self.model.device)
        decoder = decoder_for(self.model, self.tokenizer.pad_token_id or 0)
        logits = decoder.start(prompts)
        # A generator that rows share would give other numbers if some of them waited, and padded rows grow together.
        may_wait = decoder.feeds_chunks and (uniforms_BN is not None or sampling.temperature == 0.0)
        with nullcontext() if partner is None else Exchange(partner, first, may_wait=may_wait) as exchange:
            for step in itertools.count():
                tokens, logps = sample_tokens(
                    logits,
                    temperature=sampling.temperature,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    generator=generator,
                    uniforms_B=None if uniforms_BN is None else uniforms_BN[responses.cursor()],
                )
                tokens, sampled = responses.write(tokens, logps)
                ended = sampled & torch.isin(tokens, self._eos)
                responses.end(ended)
                if exchange is not None:
                    turns = self._turns(responses, tokens, sampled, ended, exchange)
                    if turns:
                        exchange.ask(turns, step)
                        responses.wait([turn.response for turn in turns])
                    if exchange.waiting:
                        answers = exchange.take(step, all_wait=not responses.active().any())
                        self._answer(responses, decoder, tokens, answers)
                if not responses.active().any():
                    break
                keep = responses.shrink()
                if keep is not None:
                    decoder.keep(keep)
                    tokens = tokens[keep]
                logits = decoder.step(tokens, responses.active())
        return responses.rollouts()

    def _turns(
        self, responses: Responses, tokens: Tensor, sampled: Tensor, ended: Tensor, exchange: Exchange
    ) -> list[Turn]:
        """The turns that end with this step's tokens and are to be shown to the partner."""
        shown = ended if exchange.answers_ends else torch.zeros_like(ended)
        if exchange.closing_characters:
            vocabulary = self.model.get_input_embeddings().num_embeddings
            closing = closing_tokens(self.tokenizer, exchange.closing_characters, vocabulary, tokens.device)
            shown = shown | sampled & responses.active() & closing[tokens]
        return [
            Turn(response=response, ids=ids, ended=row_ended)
            for (response, ids), row_ended in zip(
                responses.since_last_answer(shown.nonzero().squeeze(-1)), ended[shown].tolist(), strict=True
            )
            if exchange.listens_to(response)
        ]

    def _answer(
        self,
        responses: Responses,
        decoder: Decoder,
        tokens: Tensor,
        answers: Sequence[tuple[Turn, Answer | None]],
    ) -> None:
        """Let the rows of these turns go on with what the partner answers.

        Args:
            tokens: the token that each row is fed next; it is set for these rows.
        """
        if not answers:
            return
        rows = responses.resume([turn.response for turn, _ in answers])
        tokens[rows] = torch.tensor([turn.ids[-1] for turn, _ in answers], device=tokens.device)
        answered = {
            row: (turn.response, answer)
            for row, (turn, answer) in zip(rows, answers, strict=True)
            if answer is not None
        }
        if answered:
            responses.take(*zip(*answered.values(), strict=True))
            self._insert(responses, decoder, tokens, answered)

    def _insert(
        self,
        responses: Responses,
        decoder: Decoder,
        tokens: Tensor,
        answered: dict[int, tuple[int, Answer]],
    ) -> None:
        """Insert the answer of each row, as far as the response has room.

        Args:
            tokens: the token that each row is fed next. A row that reads its answer here gets the answer's last token.
            answered: the rows that were answered, with the response and the answer of each.
        """
        going = [row for row, (_, answer) in answered.items() if not answer.done]
        alone = len(going) == int(responses.active().sum())
        room = responses.room([response for response, _ in answered.values()])
        chunks: list[tuple[int, list[int]]] = []
        for (row, (response, answer)), free in zip(answered.items(), room, strict=True):
            ids = answer.ids[:free]
            worth_a_pass = decoder.feeds_chunks and len(ids) >= (2 if alone else _CHUNK)
            responses.force(response, ids, at_once=answer.done or worth_a_pass)
            if worth_a_pass and not answer.done and len(ids) < free:
                chunks.append((row, [int(tokens[row]), *ids[:-1]]))
                tokens[row] = ids[-1]
        if chunks:
            decoder.feed([row for row, _ in chunks], [ids for _, ids in chunks])


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured: Any = getattr(model, "generation_config", None) and model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in (*several, tokenizer.eos_token_id) if i is not None}
