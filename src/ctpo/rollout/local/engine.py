"""Sampling in this process, with any causal language model of transformers.

All rows of a batch advance together, one token per step. A tool's output enters the row's cache directly, so a tool
turn needs no second prefill and nothing is tokenised again. A long output is read in one forward pass of the rows
concerned. A short one is read token by token in place of sampled tokens, which costs no extra pass while other rows
still decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctpo import fast_cpu
from ctpo.rollout.chat import called_program, encode_result
from ctpo.rollout.local.decoders import Decoder, decoder_for
from ctpo.rollout.local.responses import Responses
from ctpo.rollout.records import Rollout
from ctpo.rollout.sampling import Sampling, sample_tokens
from ctpo.rollout.tools import ToolRunner

_CHUNK = 16
"""A tool's output of at least this many tokens is read in a pass of its own. A pass for fewer tokens would cost more
than it saves."""


class TransformersEngine:
    """Samples responses with a transformers model, and runs the tool when the model calls it.

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
            rollouts = engine.generate(prompts, Sampling(max_new_tokens=96), tools=tools)
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
        self._may_close: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """The device that a random generator for `generate` must be on."""
        device: torch.device = self.model.device
        return device

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        tools: ToolRunner | None = None,
        generator: torch.Generator | None = None,
        uniforms: Tensor | None = None,
    ) -> list[Rollout]:
        """One response for each prompt, in order. Equal prompts are read once.

        Args:
            prompts: the token ids of each prompt.
            sampling: how tokens are drawn.
            tools: runs the programs that the model writes; None for a task without a tool.
            generator: a source of randomness that the rows share; torch's global one if None.
            uniforms: [prompts, max_new_tokens], random numbers for each row (`row_uniforms`) in place of a generator.
                A response is then the same whatever else is decoded.

        Raises:
            UserError: if a prompt is empty or leaves no room in the model's context.
        """
        sampling.check_prompts(prompts, self._context())
        if tools is not None:
            tools.adapt(self.tokenizer)
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
                        tools,
                        generator,
                        None if noise is None else noise[i : i + rows],
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
        tools: ToolRunner | None,
        generator: torch.Generator | None,
        uniforms_BN: Tensor | None,
    ) -> list[Rollout]:
        responses = Responses(prompts, sampling.max_new_tokens, self.model.device)
        decoder = decoder_for(self.model, self.tokenizer.pad_token_id or 0)
        logits = decoder.start(prompts)
        while True:
            tokens, logps = sample_tokens(
                logits,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                generator=generator,
                uniforms_B=None if uniforms_BN is None else uniforms_BN[responses.cursor()],
            )
            tokens, sampled = responses.write(tokens, logps)
            responses.end(sampled & torch.isin(tokens, self._eos))
            if tools is not None:
                self._run_tools(responses, decoder, tokens, sampled, tools)
            if not responses.active().any():
                return responses.rollouts()
            keep = responses.shrink()
            if keep is not None:
                decoder.keep(keep)
                tokens = tokens[keep]
            logits = decoder.step(tokens, responses.active())

    def _run_tools(
        self, responses: Responses, decoder: Decoder, tokens: Tensor, sampled: Tensor, tools: ToolRunner
    ) -> None:
        """Run the calls that this step's tokens completed, and insert their outputs into the responses."""
        closing = sampled & responses.active() & self._closes(tools.tool.closing_characters)[tokens]
        calling: dict[int, int] = {}
        programs: list[str] = []
        for row, response, ids in responses.since_last_output(closing.nonzero().squeeze(-1)):
            if len(responses.calls[response]) < tools.tool.max_calls:
                program = called_program(self.tokenizer, tools.tool, ids)
                if program is not None:
                    calling[row] = response
                    programs.append(program)
        if not programs:
            return
        calls = tools.run(programs)
        for response, call in zip(calling.values(), calls, strict=True):
            responses.calls[response].append(call)
        outputs = encode_result(self.tokenizer, tools.tool, [call.output for call in calls])
        self._insert(responses, decoder, tokens, calling, outputs)

    def _insert(
        self,
        responses: Responses,
        decoder: Decoder,
        tokens: Tensor,
        calling: dict[int, int],
        outputs: list[list[int]],
    ) -> None:
        """Insert the output of each row's call, as far as the response has room.

        Args:
            tokens: the token that each row is fed next. A row that reads its output here gets the output's last token.
            calling: the rows that made a call, with the response of each.
            outputs: the token ids of each output.
        """
        room = responses.room(list(calling.values()))
        cut = [ids[:free] for ids, free in zip(outputs, room, strict=True)]
        alone = len(calling) == int(responses.active().sum())
        chunks: list[tuple[int, list[int]]] = []
        for (row, response), ids, free in zip(calling.items(), cut, room, strict=True):
            at_once = decoder.feeds_chunks and len(ids) >= (2 if alone else _CHUNK)
            responses.force([response], [ids], at_once=at_once)
            if at_once and len(ids) < free:
                chunks.append((row, [int(tokens[row]), *ids[:-1]]))
                tokens[row] = ids[-1]
        if chunks:
            decoder.feed([row for row, _ in chunks], [ids for _, ids in chunks])

    def _closes(self, characters: str) -> Tensor:
        """For each token id, whether it has a character that can end a call. Only then is a row decoded to text."""
        if characters not in self._may_close:
            vocabulary = self.model.get_input_embeddings().num_embeddings
            texts = self.tokenizer.decode([[i] for i in range(len(self.tokenizer))])
            table = torch.zeros(max(vocabulary, len(texts)), dtype=torch.bool)
            table[: len(texts)] = torch.tensor([any(c in text for c in characters) for text in texts])
            self._may_close[characters] = table.to(self.model.device)
        return self._may_close[characters]


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured: Any = getattr(model, "generation_config", None) and model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in (*several, tokenizer.eos_token_id) if i is not None}
