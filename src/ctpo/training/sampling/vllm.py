"""The vLLM that TRL started, as an engine of ours: colocated in this process, or a server through TRL's client.

TRL starts vLLM, gives it the weights of the model in training, and corrects for its log-probs. Only the turns between
completions are ours (`ctpo.rollout.remote.vllm`), because TRL's own loop parses chat messages and knows neither our
tool tags nor our length limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import torch
from accelerate.utils import broadcast_object_list, gather_object

from ctpo.rollout.remote.row import CompletionRequest
from ctpo.rollout.remote.vllm import Completion, VLLMEngine
from ctpo.rollout.sampling import Sampling
from ctpo.training.view import SamplingView

_CONNECTIONS: Final = 64
"""The largest number of simultaneous requests to a server, as in TRL's own client."""

GENERATION_ATTRIBUTES: Final = (
    *("mode", "accelerator", "tensor_parallel_size", "enable_sleep_mode", "sync_weights"),
    *("_llm_weights_sleeping", "llm", "vllm_client", "tp_group"),
)
"""The attributes of TRL's `VLLMGeneration` that are used here. A test compares them with the installed TRL."""


def vllm_engine(trainer: SamplingView) -> VLLMEngine:
    """An engine that samples with the trainer's vLLM, which gets the weights of the model in training first.

    If one process samples with it, every process must: a server answers the main process only, and a colocated model
    may span several processes.
    """
    generation = trainer.vllm_generation
    # TRL also does this before a rollout. A held-out evaluation comes between two rollouts.
    if trainer.state.global_step != trainer._last_loaded_step:
        generation.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
    completer = TRLCompleter(generation, _context(trainer))
    return VLLMEngine(completer, trainer.processing_class, eos_token_ids=trainer.eos_token_ids)


class TRLCompleter:
    """A `ctpo.rollout.remote.vllm.Completer` that uses TRL's `VLLMGeneration`.

    Args:
        generation: TRL's VLLMGeneration.
        context: how many tokens a prompt and its response may have together; None if unknown.
    """

    def __init__(self, generation: Any, context: int | None) -> None:
        self._generation = generation
        self._alone = _processes(generation) == 1
        self.context = context

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Wake a sleeping colocated model once for all turns of a rollout, not once per turn."""
        generation = self._generation
        if generation.mode == "server" or not generation.enable_sleep_mode:
            yield
            return
        if generation._llm_weights_sleeping:
            generation.sync_weights()
        generation.llm.wake_up(tags=["kv_cache"])
        try:
            yield
        finally:
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True

    def anyone(self, live: bool) -> bool:
        """Whether this process, or any that completes together with it, has requests left."""
        return any(self._from_all([live]))

    def complete(
        self, requests: Sequence[CompletionRequest], sampling: Sampling, eos: Sequence[int]
    ) -> list[Completion]:
        """One completion per request, in order. Every process must call, if need be without requests."""
        if self._generation.mode == "server":
            return self._by_server(list(requests), sampling, eos)
        return self._colocated(list(requests), sampling, eos)

    def _colocated(
        self, requests: list[CompletionRequest], sampling: Sampling, eos: Sequence[int]
    ) -> list[Completion]:
        """The processes that share a model give it the requests of all, and each takes its own completions."""
        counts = self._from_all([len(requests)])
        everything = self._from_all(requests)
        completions = _generate(self._generation.llm, everything, sampling, eos) if everything else []
        first = sum(counts[: self._rank()])
        return completions[first : first + len(requests)]

    def _by_server(
        self, requests: list[CompletionRequest], sampling: Sampling, eos: Sequence[int]
    ) -> list[Completion]:
        """The main process sends the requests of all processes, as TRL's own generation does."""
        accelerator = self._generation.accelerator
        counts, everything = self._from_all([len(requests)]), self._from_all(requests)
        box: list[list[Completion] | None] = [None]
        if accelerator.is_main_process:
            box = [_send(self._generation.vllm_client, everything, sampling, eos)]
        if not self._alone:
            broadcast_object_list(box, from_process=0)
        assert box[0] is not None
        first = sum(counts[: self._rank()])
        return box[0][first : first + len(requests)]

    def _from_all(self, mine: list[Any]) -> list[Any]:
        """The lists of all processes that complete together, joined in order of rank."""
        generation = self._generation
        if self._alone:
            return mine
        if generation.mode == "server":
            joined: list[Any] = gather_object(mine)
            return joined
        parts: list[list[Any]] = [[] for _ in range(generation.tensor_parallel_size)]
        torch.distributed.all_gather_object(parts, mine, group=generation.tp_group)
        return [each for part in parts for each in part]

    def _rank(self) -> int:
        """This process's place among those that complete together."""
        generation = self._generation
        if self._alone:
            return 0
        if generation.mode == "server":
            return int(generation.accelerator.process_index)
        return torch.distributed.get_rank(group=generation.tp_group)


def _processes(generation: Any) -> int:
    """The number of processes that complete together: all with a server, else those that share a model."""
    server = generation.mode == "server"
    return int(generation.accelerator.num_processes if server else generation.tensor_parallel_size)


def _generate(
    llm: Any, requests: list[CompletionRequest], sampling: Sampling, eos: Sequence[int]
) -> list[Completion]:
    """The completions of a colocated model."""
    parameters_of = import_module("vllm").SamplingParams  # vLLM is TRL's dependency, not ours
    parameters = [
        parameters_of(
            n=1, max_tokens=each.max_new_tokens, logprobs=0, **_drawn(sampling), **_ending(each, eos)
        )
        for each in requests
    ]
    prompts = [{"prompt_token_ids": each.ids} for each in requests]
    outputs = llm.generate(prompts, sampling_params=parameters, use_tqdm=False)
    return [_completion(output.outputs[0]) for output in outputs]


def _completion(output: Any) -> Completion:
    ids = list(output.token_ids)
    logps = [float(entry[token].logprob) for token, entry in zip(ids, output.logprobs, strict=True)]
    return Completion(ids, logps)


def _send(
    client: Any, requests: list[CompletionRequest], sampling: Sampling, eos: Sequence[int]
) -> list[Completion]:
    """The completions of a server.

    Requests with the same limits go together in one call, as in the first turn. Else there is one call per request,
    several at a time.
    """
    if not requests:
        return []
    limits = {(each.max_new_tokens, each.stop, each.seed) for each in requests}
    calls = [requests] if len(limits) == 1 else [[each] for each in requests]

    def send(part: list[CompletionRequest]) -> list[Completion]:
        answer = client.generate(
            prompts=[each.ids for each in part],
            max_tokens=part[0].max_new_tokens,
            logprobs=0,
            generation_kwargs=_ending(part[0], eos),
            **_drawn(sampling),
        )
        logps = [[_number(entry[0]) for entry in row] for row in answer["logprobs"]]
        return [Completion(*each) for each in zip(answer["completion_ids"], logps, strict=True)]

    with ThreadPoolExecutor(min(_CONNECTIONS, len(calls))) as pool:
        return [completion for part in pool.map(send, calls) for completion in part]


def _number(logp: float | None) -> float:
    return float("nan") if logp is None else logp  # TRL's client returns None if vLLM could not score a token


def _drawn(sampling: Sampling) -> dict[str, Any]:
    """How tokens are drawn, in vLLM's words."""
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}


def _ending(request: CompletionRequest, eos: Sequence[int]) -> dict[str, Any]:
    """Where a completion ends, in vLLM's words. Special tokens count as text: a tool's closing tag may be one."""
    return {
        "stop": list(request.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "stop_token_ids": list(eos),
        **({} if request.seed is None else {"seed": request.seed}),
    }


def _context(trainer: SamplingView) -> int | None:
    """The context of vLLM's model in tokens; None if it has no limit."""
    generation = trainer.vllm_generation
    if generation.mode == "colocate":
        return int(generation.llm.llm_engine.model_config.max_model_len)
    model = trainer.accelerator.unwrap_model(trainer.model)
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit
