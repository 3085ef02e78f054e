"""Generation in process, with any causal language model of transformers.

All rows of a batch advance together, one token a step. A row that is being fed a tool's output takes its next
token from that output instead of from the sampler, so tool turns need no second prefill, no padding and no
re-tokenisation, and column t of every row is that row's t-th response token.

Shape legend: B rows, N new tokens at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout.cache import growing_cache, select_rows
from ctpo.rollout.records import Rollout, ToolCall
from ctpo.rollout.sampling import sample_tokens
from ctpo.rollout.tools import ToolRunner

_SHRINK_BELOW = (
    0.75  # rows are dropped once this share is left: each drop copies the cache, so not at every row
)
_NOT_FORCED = -1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `max_new_tokens` counts the tool's tokens too, as TRL's completion length does."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class TransformersEngine:
    """Samples responses, running the tool where the model calls it.

    Args:
        model: a causal language model; used as it is (dtype, device), in evaluation mode, without gradient.
        tokenizer: its tokenizer, with a pad token.
        eos_token_ids: ids that end a response; the tokenizer's own if None.
        batch_size: rows decoded at once; None for all together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: Iterable[int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        ids = list(eos_token_ids) if eos_token_ids is not None else [tokenizer.eos_token_id]
        self._eos = torch.tensor(ids, device=model.device)
        self._may_close: dict[str, Tensor] = {}

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        tools: ToolRunner | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Rollout]:
        """One response a prompt, in order; equal prompts share one prefill.

        Raises:
            UserError: if a prompt is empty or leaves no room in the model's context.
        """
        self._check(prompts, sampling)
        was_training = self.model.training
        self.model.eval()
        try:
            rows = self.batch_size or max(len(prompts), 1)
            chunks = [list(prompts[i : i + rows]) for i in range(0, len(prompts), rows)]
            return [
                rollout for chunk in chunks for rollout in self._decode(chunk, sampling, tools, generator)
            ]
        finally:
            self.model.train(was_training)

    def _check(self, prompts: Sequence[list[int]], sampling: Sampling) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"prompt {i} is empty; a model needs at least one token to continue")
            if limit is not None and len(prompt) + sampling.max_new_tokens > limit:
                raise UserError(
                    f"prompt {i} has {len(prompt)} tokens, which with max_new_tokens={sampling.max_new_tokens} "
                    f"exceeds the model's context of {limit}; shorten the prompt or lower max_new_tokens"
                )

    def _prefill(self, prompts: Sequence[list[int]]) -> tuple[Any, Tensor, Tensor]:
        """Run each distinct prompt once; return the cache, the attention mask [B, P] and next logits [B, V]."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        index = {prompt: i for i, prompt in enumerate(distinct)}
        device = self.model.device
        width = max(map(len, distinct))
        ids = torch.full((len(distinct), width), self.tokenizer.pad_token_id, device=device)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(distinct):
            ids[i, width - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[i, width - len(prompt) :] = 1
        cache = growing_cache(self.model.config)
        logits = self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        rows = torch.tensor([index[tuple(prompt)] for prompt in prompts], device=device)
        select_rows(cache, rows)
        return cache, mask[rows], logits[rows]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _decode(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        tools: ToolRunner | None,
        generator: torch.Generator | None,
    ) -> list[Rollout]:
        batch = _Batch(prompts, sampling.max_new_tokens, self.model.device)
        cache, mask, logits = self._prefill(prompts)
        for t in range(sampling.max_new_tokens):
            tokens, logps = sample_tokens(
                logits,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                generator=generator,
            )
            tokens, sampled = batch.write(t, tokens, logps)
            batch.finish(sampled & torch.isin(tokens, self._eos))
            if tools is not None:
                self._run_tools(batch, t, tokens, sampled, tools)
            if t + 1 == sampling.max_new_tokens or not batch.any_active():
                break
            keep = batch.shrink()
            if keep is not None:
                select_rows(cache, keep)
                mask, tokens = mask[keep], tokens[keep]
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = self._forward(tokens[:, None], mask, mask.sum(-1, keepdim=True) - 1, cache)
        return batch.rollouts()

    def _run_tools(self, batch: _Batch, t: int, tokens: Tensor, sampled: Tensor, tools: ToolRunner) -> None:
        """Run the calls that this step's tokens completed, and queue their outputs as the rows' next tokens."""
        closing = sampled & batch.active() & self._closes(tools.tool.close)[tokens]
        asking: list[int] = []
        programs: list[str] = []
        for response, ids in batch.since_last_output(closing.nonzero().squeeze(-1), t):
            if len(batch.calls[response]) < tools.tool.max_calls:
                program = self._program(ids, tools)
                if program is not None:
                    asking.append(response)
                    programs.append(program)
        if not programs:
            return
        calls = tools.run(programs)
        for response, call in zip(asking, calls, strict=True):
            batch.calls[response].append(call)
        batch.force(asking, t + 1, self._encode([call.output for call in calls]))

    def _program(self, ids: list[int], tools: ToolRunner) -> str | None:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        start = text.rfind(tools.tool.open)
        if start < 0 or not text.endswith(tools.tool.close):
            return None
        body = text[start + len(tools.tool.open) : len(text) - len(tools.tool.close)]
        return tools.tool.extract(body)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        distinct = list(dict.fromkeys(texts))
        ids = self.tokenizer(distinct, add_special_tokens=False)["input_ids"]
        known = dict(zip(distinct, ids, strict=True))
        return [known[text] for text in texts]

    def _closes(self, close: str) -> Tensor:
        """For each token id, whether it could be the last token of the closing tag: decode only those rows."""
        if close not in self._may_close:
            vocabulary = self.model.get_input_embeddings().num_embeddings
            texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
            table = torch.zeros(max(vocabulary, len(texts)), dtype=torch.bool)
            table[: len(texts)] = torch.tensor([close[-1] in text for text in texts])
            self._may_close[close] = table.to(self.model.device)
        return self._may_close[close]


class _Batch:
    """The responses under way. Rows that are still decoding are `self._alive`, in cache order."""

    def __init__(self, prompts: list[list[int]], max_new_tokens: int, device: torch.device) -> None:
        shape = (len(prompts), max_new_tokens)
        self._prompts = prompts
        self._tokens_BN = torch.zeros(shape, dtype=torch.long, device=device)
        self._sampled_BN = torch.zeros(shape, dtype=torch.bool, device=device)
        self._logps_BN = torch.zeros(shape, dtype=torch.float32, device=device)
        self._forced_BN = torch.full(shape, _NOT_FORCED, dtype=torch.long, device=device)
        self._length_B = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self._finished_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self._alive = torch.arange(len(prompts), device=device)
        self.calls: list[list[ToolCall]] = [[] for _ in prompts]
        self._turn_start = [0] * len(prompts)

    def active(self) -> Tensor:
        """Which of the decoding rows are unfinished."""
        return ~self._finished_B[self._alive]

    def any_active(self) -> bool:
        return bool(self.active().any())

    def write(self, t: int, tokens: Tensor, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Put column t in place; return what the model is fed next and which tokens were its own."""
        rows = self._alive
        forced = self._forced_BN[rows, t]
        sampled = forced == _NOT_FORCED
        tokens = torch.where(sampled, tokens, forced)
        active = self.active()
        self._tokens_BN[rows, t] = tokens
        self._sampled_BN[rows, t] = sampled & active
        self._logps_BN[rows, t] = torch.where(sampled, logps, 0.0)
        self._length_B[rows] = torch.where(active, t + 1, self._length_B[rows])
        return tokens, sampled

    def finish(self, ended: Tensor) -> None:
        self._finished_B[self._alive] |= ended

    def shrink(self) -> Tensor | None:
        """Which decoding rows to keep, once enough have finished; None to keep all."""
        active = self.active()
        if active.float().mean() > _SHRINK_BELOW:
            return None
        keep = active.nonzero().squeeze(-1)
        self._alive = self._alive[keep]
        return keep

    def since_last_output(self, rows: Tensor, t: int) -> list[tuple[int, list[int]]]:
        """For these decoding rows: which response each is, and its tokens since the last tool output, through t."""
        responses = self._alive[rows]
        tokens = self._tokens_BN[responses, : t + 1].tolist()
        return [(i, ids[self._turn_start[i] :]) for i, ids in zip(responses.tolist(), tokens, strict=True)]

    def force(self, responses: list[int], start: int, ids: list[list[int]]) -> None:
        """Feed each response these tokens from column `start` on, as far as there is room."""
        room = self._tokens_BN.shape[1] - start
        rows: list[int] = []
        columns: list[int] = []
        values: list[int] = []
        for response, given in zip(responses, ids, strict=True):
            fitting = given[:room]
            rows += [response] * len(fitting)
            columns += range(start, start + len(fitting))
            values += fitting
            self._turn_start[response] = start + len(fitting)
        row, column, value = torch.tensor(
            [rows, columns, values], dtype=torch.long, device=self._forced_BN.device
        )
        self._forced_BN[row, column] = value

    def rollouts(self) -> list[Rollout]:
        tokens, sampled = self._tokens_BN.tolist(), self._sampled_BN.int().tolist()
        logps, finished = self._logps_BN.tolist(), self._finished_B.tolist()
        return [
            Rollout(
                prompt_ids=prompt,
                completion_ids=tokens[i][:length],
                model_mask=sampled[i][:length],
                logps=logps[i][:length],
                calls=self.calls[i],
                finished=finished[i],
            )
            for i, (prompt, length) in enumerate(zip(self._prompts, self._length_B.tolist(), strict=True))
        ]
