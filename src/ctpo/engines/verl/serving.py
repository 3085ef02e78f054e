"""The rollout server for machines without an accelerator: our own decoder in a Ray actor.

It completes token ids. Tools, environments and the judge are in the agent loop (`ctpo.engines.verl.agent`), which talks
to vLLM and SGLang in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctpo.engines.verl.decoding import Decoding
from ctpo.engines.verl.site import CPU_ROLLOUT
from ctpo.evaluation.model import load_model
from ctpo.rollout import TransformersEngine
from ctpo.rollout.remote.row import CompletionRequest
from ctpo.rollout.sampling import Sampling


def server_name(rank: int, suffix: str = "") -> str:
    """The name of the Ray actor of one replica."""
    return f"{CPU_ROLLOUT}_server_{rank}{suffix}"


class Server:
    """One model that completes token ids, as verl's rollout servers do.

    Args:
        path: of the model.
        batch: the most responses that are decoded at once.
        seed: of its random numbers.
        threads: of torch.
    """

    def __init__(self, path: str, batch: int, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        model, tokenizer = load_model(path)
        self._decoding = Decoding(TransformersEngine(model, tokenizer, batch_size=batch), seed)

    async def ready(self) -> bool:
        """True, once the model is loaded."""
        return True

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: Mapping[str, Any], **_: Any
    ) -> Any:
        """The completion of these token ids, as a `TokenOutput` of verl's."""
        from verl.workers.rollout.replica import TokenOutput

        sampling = Sampling(
            max_new_tokens=1,
            temperature=float(sampling_params.get("temperature", 1.0)),
            top_p=float(sampling_params.get("top_p", 1.0)),
            top_k=max(0, int(sampling_params.get("top_k", 0))),
        )
        request = CompletionRequest(
            ids=list(prompt_ids),
            max_new_tokens=int(sampling_params["max_tokens"]),
            stop=tuple(sampling_params.get("stop") or ()),
        )
        completion, version = await self._decoding.complete(request, sampling)
        return TokenOutput(
            token_ids=completion.ids,
            log_probs=completion.logps,
            stop_reason="completed",
            num_preempted=0,
            extra_fields={"global_steps": version},
        )

    async def load(self, weights: dict[str, Tensor], version: int | None) -> None:
        """Take these weights, between two batches."""
        await self._decoding.load(weights, version)

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Let no request begin, and wait for those that are decoded. None is aborted."""
        await self._decoding.pause()

    async def resume_generation(self) -> None:
        """Let requests begin again."""
        self._decoding.resume()

    async def wake_up(self, tags: Any = None) -> None: ...

    async def sleep(self) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...
