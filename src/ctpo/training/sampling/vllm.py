"""TRL's vLLM behind our engine: colocated in this process, or a server through TRL's client.

TRL starts vLLM, keeps its weights in step with the model in training, and corrects for its log-probs; what is
ours is only the turns between completions (`ctpo.rollout.remote.vllm`), because TRL's own loop goes through its chat
parsing and knows neither our tool tags nor our length limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from ctpo.rollout.remote.vllm import Completion, CompletionRequest, VLLMEngine
from ctpo.rollout.sampling import Sampling
from ctpo.training.view import SamplingView

_CONNECTIONS = 64  # requests to a server at a time, as many as TRL's own client makes

GENERATION_ATTRIBUTES = (
    *("mode", "accelerator", "tensor_parallel_size", "enable_sleep_mode", "sync_weights"),
    *("_llm_weights_sleeping", "llm", "vllm_client", "tp_group"),
)
"""What is used of TRL's `VLLMGeneration`; a test compares it with the installed TRL."""


def vllm_engine(trainer: SamplingView) -> VLLMEngine:
    """The engine of a trainer with `use_vllm`, its weights those of the model in training.

    Every process must sample with it when one does: a server answers the main process only, and a colocated
    model may span several.
    """
    generation = trainer.vllm_generation
    # TRL does the same before a rollout; a held-out evaluation comes between two.
    if trainer.state.global_step != trainer._last_loaded_step:
        generation.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
    completer = TRLCompleter(generation, _context(trainer))
    return VLLMEngine(completer, trainer.processing_class, eos_token_ids=trainer.eos_token_ids)


class TRLCompleter:
    """A `Completer` over TRL's `VLLMGeneration`."""

    def __init__(self, generation: Any, context: int | None) -> None:
        self._generation = generation
        self._alone = _processes(generation) == 1
        self.context = context

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Wake a sleeping colocated model once for all turns of a rollout, not once a turn."""
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
        return any(self._from_all([live]))

    def complete(
        self, asks: Sequence[CompletionRequest], sampling: Sampling, eos: Sequence[int]
    ) -> list[Completion]:
        if self._generation.mode == "server":
            return self._by_server(list(asks), sampling, eos)
        return self._colocated(list(asks), sampling, eos)

    def _colocated(
        self, asks: list[CompletionRequest], sampling: Sampling, eos: Sequence[int]
    ) -> list[Completion]:
        counts = self._from_all([len(asks)])
        everything = self._from_all(asks)
        said = _generate(self._generation.llm, everything, sampling, eos) if everything else []
        first = sum(counts[: self._rank()])
        return said[first : first + len(asks)]

    def _by_server(
        self, asks: list[CompletionRequest], sampling: Sampling, eos: Sequence[int]
    ) -> list[Completion]:
        """The main process asks for everyone, as TRL's own generation does."""
        accelerator = self._generation.accelerator
        counts, everything = self._from_all([len(asks)]), self._from_all(asks)
        said: list[list[Completion] | None] = [None]
        if accelerator.is_main_process:
            said = [_request(self._generation.vllm_client, everything, sampling, eos)]
        if not self._alone:
            broadcast_object_list(said, from_process=0)
        assert said[0] is not None
        first = sum(counts[: self._rank()])
        return said[0][first : first + len(asks)]

    def _from_all(self, mine: list[Any]) -> list[Any]:
        """The lists of the processes that complete together, joined in order of their rank."""
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
        generation = self._generation
        if self._alone:
            return 0
        if generation.mode == "server":
            return int(generation.accelerator.process_index)
        return torch.distributed.get_rank(group=generation.tp_group)


def _processes(generation: Any) -> int:
    """How many complete together: all with a server, those that share a model otherwise."""
    server = generation.mode == "server"
    return int(generation.accelerator.num_processes if server else generation.tensor_parallel_size)


def _generate(
    llm: Any, asks: list[CompletionRequest], sampling: Sampling, eos: Sequence[int]
) -> list[Completion]:
    parameters_of = import_module("vllm").SamplingParams  # no dependency of ours: TRL asks for it
    parameters = [
        parameters_of(n=1, max_tokens=ask.max_new_tokens, logprobs=0, **_drawn(sampling), **_ending(ask, eos))
        for ask in asks
    ]
    prompts = [{"prompt_token_ids": ask.ids} for ask in asks]
    outputs = llm.generate(prompts, sampling_params=parameters, use_tqdm=False)
    return [_completion(output.outputs[0]) for output in outputs]


def _completion(output: Any) -> Completion:
    ids = list(output.token_ids)
    logps = [float(entry[token].logprob) for token, entry in zip(ids, output.logprobs, strict=True)]
    return Completion(ids, logps)


def _request(
    client: Any, asks: list[CompletionRequest], sampling: Sampling, eos: Sequence[int]
) -> list[Completion]:
    """One request for all rows where they ask alike (the first turn), else one a row, some at a time."""
    if not asks:
        return []
    alike = {(ask.max_new_tokens, ask.stop, ask.seed) for ask in asks}
    parts = [asks] if len(alike) == 1 else [[ask] for ask in asks]

    def send(part: list[CompletionRequest]) -> list[Completion]:
        answer = client.generate(
            prompts=[ask.ids for ask in part],
            max_tokens=part[0].max_new_tokens,
            logprobs=0,
            generation_kwargs=_ending(part[0], eos),
            **_drawn(sampling),
        )
        logps = [[_number(entry[0]) for entry in row] for row in answer["logprobs"]]
        return [Completion(*each) for each in zip(answer["completion_ids"], logps, strict=True)]

    with ThreadPoolExecutor(min(_CONNECTIONS, len(parts))) as pool:
        return [said for part in pool.map(send, parts) for said in part]


def _number(logp: float | None) -> float:
    return float("nan") if logp is None else logp  # TRL's client has None where vLLM could not score a token


def _drawn(sampling: Sampling) -> dict[str, Any]:
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}


def _ending(ask: CompletionRequest, eos: Sequence[int]) -> dict[str, Any]:
    """Where a completion ends. Special tokens count as text, because a tool's closing tag may be one."""
    return {
        "stop": list(ask.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "stop_token_ids": list(eos),
        **({} if ask.seed is None else {"seed": ask.seed}),
    }


def _context(trainer: SamplingView) -> int | None:
    generation = trainer.vllm_generation
    if generation.mode == "colocate":
        return int(generation.llm.llm_engine.model_config.max_model_len)
    model = trainer.accelerator.unwrap_model(trainer.model)
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit
