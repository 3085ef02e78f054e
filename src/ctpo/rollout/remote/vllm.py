"""Responses completed by vLLM over several tool turns, token ids in and token ids out.

vLLM completes all rows. Between two completions, the programs of all rows run together and their outputs are appended
as token ids. A row's earlier tokens are sent again as ids, which vLLM's prefix cache makes cheap, and never as text.
So a response is the very sequence that the model saw, as with `TransformersEngine`.

Nothing here imports vLLM. The engine is given a `Completer`: `ctpo.training.sampling.vllm` has one for TRL's colocated
model and for TRL's client of a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ctpo.rollout.chat import called_program, encode_result
from ctpo.rollout.records import Rollout
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import ToolRunner


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """What one row needs next."""

    ids: list[int]
    """All token ids so far: the prompt, the model's tokens and the tool's tokens."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end the completion. The tokens that complete such a text are part of the completion."""
    seed: int | None = None


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

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        tools: ToolRunner | None = None,
        uniforms: Tensor | None = None,
    ) -> list[Rollout]:
        """One response for each prompt, in order.

        Args:
            prompts, sampling, tools: as for `TransformersEngine.generate`.
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
        if tools is not None:
            tools.adapt(self.tokenizer)
        rows = [
            _Row(prompt, sampling.max_new_tokens, None if uniforms is None else uniforms[i])
            for i, prompt in enumerate(prompts)
        ]
        live = rows
        with self._completer.awake():
            while self._completer.anyone(bool(live)):
                requests = [row.request(tools) for row in live]
                completions = self._completer.complete(requests, sampling, self._eos)
                for row, request, (ids, logps) in zip(live, requests, completions, strict=True):
                    row.append_sampled(ids, logps, ended=self._ended(request, ids), eos=self._eos)
                live = [row for row in live if not row.done]
                if tools is not None:
                    self._run_tools(live, tools)
                live = [row for row in live if row.room]
        return [row.rollout for row in rows]

    def _ended(self, request: CompletionRequest, ids: list[int]) -> bool:
        """Whether the model ended the response, and not a stop text or the length limit the completion."""
        if not ids or ids[-1] in self._eos:
            return True
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return len(ids) < request.max_new_tokens and not any(stop in text for stop in request.stop)

    def _run_tools(self, rows: list[_Row], tools: ToolRunner) -> None:
        """Run the calls of the rows' last completions, all together, and append the outputs."""
        calling: list[_Row] = []
        programs: list[str] = []
        for row in rows:
            if row.room and len(row.rollout.calls) < tools.tool.max_calls:
                program = called_program(self.tokenizer, tools.tool, row.since_last_output)
                if program is not None:
                    calling.append(row)
                    programs.append(program)
        if not programs:
            return
        calls = tools.run(programs)
        outputs = encode_result(self.tokenizer, tools.tool, [call.output for call in calls])
        for row, call, ids in zip(calling, calls, outputs, strict=True):
            row.rollout.calls.append(call)
            row.append_output(ids)


class _Row:
    """One response that is being completed."""

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

    def request(self, tools: ToolRunner | None) -> CompletionRequest:
        # After the last allowed call the model may continue: nothing would run at a stop.
        stops = tools is not None and len(self.rollout.calls) < tools.tool.max_calls
        return CompletionRequest(
            ids=self.rollout.prompt_ids + self.rollout.completion_ids,
            max_new_tokens=self.room,
            stop=tools.tool.stops if tools is not None and stops else (),
            seed=self._seed(),
        )

    def _seed(self) -> int | None:
        if self._uniforms is None:
            return None
        return int(self._uniforms[len(self.rollout.completion_ids)].double() * 2**31)

    def append_sampled(self, ids: list[int], logps: list[float], *, ended: bool, eos: Sequence[int]) -> None:
        ids, logps = ids[: self.room], logps[: self.room]
        self._append(ids, logps, sampled=1)
        self.rollout.finished = bool(ids) and ids[-1] in eos
        self.done = ended or not self.room

    def append_output(self, ids: list[int]) -> None:
        ids = ids[: self.room]
        self._append(ids, [0.0] * len(ids), sampled=0)
        self._turn_start = len(self.rollout.completion_ids)

    def _append(self, ids: list[int], logps: list[float], *, sampled: int) -> None:
        assert len(ids) == len(logps)
        self.rollout.completion_ids += ids
        self.rollout.logps += logps
        self.rollout.response_mask += [sampled] * len(ids)
