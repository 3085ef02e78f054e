"""Generation by vLLM across tool turns, token in, token out.

vLLM completes; between two completions the programs of all rows run together and their outputs are appended as
token ids. What a row has said is sent again as ids (vLLM's prefix cache makes that cheap), never as text, so a
response is the very sequence the model saw, as with the engine in process. Nothing here imports vLLM: who
completes is handed in (`ctpo.training.sampling.vllm` brings TRL's colocated model or TRL's client of a server).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout.chat import called_program, encode_result
from ctpo.rollout.records import Rollout
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import ToolRunner


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One row's next completion."""

    ids: list[int]
    """Everything so far: prompt, what the model said, what the tool answered."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end the completion; the tokens that complete one are part of it."""
    seed: int | None = None


Said = tuple[list[int], list[float]]
"""Token ids and their log-probs."""


class Completer(Protocol):
    """Something that completes token ids: vLLM in this process, or behind a server."""

    context: int | None
    """Tokens that prompt and response may have together; None if unknown."""

    def awake(self) -> AbstractContextManager[None]:
        """Hold the model ready over several `complete`s."""

    def anyone(self, live: bool) -> bool:
        """Whether any process that completes together with this one has something left to ask."""

    def complete(self, asks: Sequence[Ask], sampling: Sampling, eos: Sequence[int]) -> list[Said]:
        """One completion an ask, in order. Every process calls it equally often, if need be with no asks."""


class VLLMEngine:
    """Samples responses as `TransformersEngine` does, with vLLM in the model's place.

    Args:
        completer: who completes.
        tokenizer: the model's.
        eos_token_ids: ids that end a response.
    """

    def __init__(
        self, completer: Completer, tokenizer: PreTrainedTokenizerBase, *, eos_token_ids: Iterable[int]
    ) -> None:
        self.tokenizer = tokenizer
        self._completer = completer
        self._eos = sorted(set(eos_token_ids))

    def fits(self, prompt: Sequence[int], sampling: Sampling) -> bool:
        """Whether the model's context has room for the prompt and the longest response."""
        limit = self._completer.context
        return limit is None or len(prompt) + sampling.max_new_tokens <= limit

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        tools: ToolRunner | None = None,
        uniforms: Tensor | None = None,
    ) -> list[Rollout]:
        """One response a prompt, in order.

        Args:
            prompts, sampling, tools: as `TransformersEngine.generate` takes them.
            uniforms: [prompts, max_new_tokens]; gives every completion a seed of its own.

        Raises:
            UserError: if a prompt is empty or leaves no room in the model's context.
        """
        self._check(prompts, sampling)
        if tools is not None:
            tools.adapt(self.tokenizer)
        rows = [
            _Row(prompt, sampling.max_new_tokens, None if uniforms is None else uniforms[i])
            for i, prompt in enumerate(prompts)
        ]
        live = rows
        with self._completer.awake():
            while self._completer.anyone(bool(live)):
                asks = [row.ask(tools) for row in live]
                said = self._completer.complete(asks, sampling, self._eos)
                for row, ask, (ids, logps) in zip(live, asks, said, strict=True):
                    row.take(ids, logps, ended=self._ended(ask, ids), eos=self._eos)
                live = [row for row in live if not row.done]
                if tools is not None:
                    self._run_tools(live, tools)
                live = [row for row in live if row.room]
        return [row.rollout for row in rows]

    def _check(self, prompts: Sequence[list[int]], sampling: Sampling) -> None:
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"prompt {i} is empty; a model needs at least one token to continue")
            if not self.fits(prompt, sampling):
                raise UserError(
                    f"prompt {i} has {len(prompt)} tokens, which with max_new_tokens={sampling.max_new_tokens} "
                    f"exceeds vLLM's context of {self._completer.context}; shorten the prompt, lower "
                    "max_new_tokens or raise vllm_max_model_length"
                )

    def _ended(self, ask: Ask, ids: list[int]) -> bool:
        """Whether nothing is to come: the model ended, rather than a text that ends a completion, or the room."""
        if not ids or ids[-1] in self._eos:
            return True
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return len(ids) < ask.max_new_tokens and not any(stop in text for stop in ask.stop)

    def _run_tools(self, rows: list[_Row], tools: ToolRunner) -> None:
        """Run the calls that the rows' last completions made, all together, and append the outputs."""
        asking: list[_Row] = []
        programs: list[str] = []
        for row in rows:
            if row.room and len(row.rollout.calls) < tools.tool.max_calls:
                program = called_program(self.tokenizer, tools.tool, row.since_last_output)
                if program is not None:
                    asking.append(row)
                    programs.append(program)
        if not programs:
            return
        calls = tools.run(programs)
        outputs = encode_result(self.tokenizer, tools.tool, [call.output for call in calls])
        for row, call, ids in zip(asking, calls, outputs, strict=True):
            row.rollout.calls.append(call)
            row.insert(ids)


class _Row:
    """One response under way."""

    def __init__(self, prompt: list[int], limit: int, uniforms: Tensor | None) -> None:
        self._uniforms = uniforms
        self.rollout = Rollout(prompt_ids=prompt)
        self.done = False
        self._limit = limit
        self._turn_start = 0

    @property
    def room(self) -> int:
        return self._limit - len(self.rollout.completion_ids)

    @property
    def since_last_output(self) -> list[int]:
        return self.rollout.completion_ids[self._turn_start :]

    def ask(self, tools: ToolRunner | None) -> Ask:
        # Beyond the last call the model may write on: nothing would be done at a stop.
        stops = tools is not None and len(self.rollout.calls) < tools.tool.max_calls
        return Ask(
            ids=self.rollout.prompt_ids + self.rollout.completion_ids,
            max_new_tokens=self.room,
            stop=(tools.tool.close,) if tools is not None and stops else (),
            seed=self._seed(),
        )

    def _seed(self) -> int | None:
        if self._uniforms is None:
            return None
        return int(self._uniforms[len(self.rollout.completion_ids)].double() * 2**31)

    def take(self, ids: list[int], logps: list[float], *, ended: bool, eos: Sequence[int]) -> None:
        ids, logps = ids[: self.room], logps[: self.room]
        self._append(ids, logps, own=1)
        self.rollout.finished = bool(ids) and ids[-1] in eos
        self.done = ended or not self.room

    def insert(self, ids: list[int]) -> None:
        ids = ids[: self.room]
        self._append(ids, [0.0] * len(ids), own=0)
        self._turn_start = len(self.rollout.completion_ids)

    def _append(self, ids: list[int], logps: list[float], *, own: int) -> None:
        assert len(ids) == len(logps)
        self.rollout.completion_ids += ids
        self.rollout.logps += logps
        self.rollout.model_mask += [own] * len(ids)
