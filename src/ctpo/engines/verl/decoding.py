"""Completions by our own decoder for many requests that come at any time. Nothing here imports verl or Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout import TransformersEngine
from ctpo.rollout.remote.row import CompletionRequest
from ctpo.rollout.remote.vllm import Completion
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.turns import Answer, Turn

_GATHER_S: Final = 0.02
"""Seconds to wait for further requests, which are then decoded together."""


class StopTexts:
    """Ends every response at its first stop text. It is a `Partner` that never says anything.

    Args:
        stops: the stop texts of each response.
    """

    answers_ends: Final = False
    stops: Final = ()

    def __init__(self, stops: Sequence[Sequence[str]]) -> None:
        self._stops = stops

    @property
    def closing_characters(self) -> str:
        """The last characters of all stop texts."""
        return "".join(sorted({stop[-1] for stops in self._stops for stop in stops if stop}))

    def begin(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> None:
        self._tokenizer = tokenizer

    def listens_to(self, response: int) -> bool:
        return bool(self._stops[response])

    def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
        texts = self._tokenizer.batch_decode([turn.ids for turn in turns], skip_special_tokens=False)
        return [
            Answer(ids=[], done=True) if any(stop in text for stop in self._stops[turn.response]) else None
            for turn, text in zip(turns, texts, strict=True)
        ]


class Versioned(NamedTuple):
    """A completion, and the version of the weights that sampled it."""

    completion: Completion
    version: int | None


class _Waiting(NamedTuple):
    request: CompletionRequest
    sampling: Sampling
    done: asyncio.Future[Versioned]


class Decoding:
    """Completes requests with a model. Those that wait together are decoded together.

    Weights change only between two such batches. So every completion is of one version of the weights.

    Args:
        engine: of the model.
        seed: of the random numbers.

    Attributes:
        version: the number that came with the weights that are used.
    """

    def __init__(self, engine: TransformersEngine, seed: int) -> None:
        self.version: int | None = None
        self._engine = engine
        self._generator = torch.Generator(device=engine.device).manual_seed(seed)
        self._waiting: list[_Waiting] = []
        self._busy = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._turn: asyncio.Task[None] | None = None

    async def complete(self, request: CompletionRequest, sampling: Sampling) -> Versioned:
        """The completion of a request, with the version of the weights that sampled it.

        Args:
            request: what is to be completed.
            sampling: how tokens are drawn. The request says how many.
        """
        await self._open.wait()
        done: asyncio.Future[Versioned] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, sampling, done))
        if self._turn is None or self._turn.done():
            self._turn = asyncio.create_task(self._work())
        return await done

    async def pause(self) -> None:
        """Let no further request begin, and wait until all that have begun are answered."""
        self._open.clear()
        if self._turn is not None:
            await asyncio.shield(self._turn)

    def resume(self) -> None:
        """Let requests begin again."""
        self._open.set()

    async def load(self, weights: Mapping[str, Tensor], version: int | None) -> None:
        """Take these weights.

        Raises:
            UserError: if names do not fit the model.
        """
        async with self._busy:
            load_weights(self._engine.model, weights)
            self.version = version

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_S)
            async with self._busy:
                batch, self._waiting = self._waiting, []
                for group in _alike(batch):
                    await self._serve(group)

    async def _serve(self, group: Sequence[_Waiting]) -> None:
        try:
            completions = await asyncio.to_thread(self._decode, group)
        except Exception as error:  # whoever asked gets it
            for each in group:
                each.done.set_exception(error)
            return
        for each, completion in zip(group, completions, strict=True):
            each.done.set_result(Versioned(completion, self.version))

    def _decode(self, group: Sequence[_Waiting]) -> list[Completion]:
        limits = [each.request.max_new_tokens for each in group]
        sampling = replace(group[0].sampling, max_new_tokens=max(limits))
        rollouts = self._engine.generate(
            [each.request.ids for each in group],
            sampling,
            partner=StopTexts([each.request.stop for each in group]),
            generator=self._generator,
            limits=limits,
        )
        return [Completion(rollout.completion_ids, rollout.logps) for rollout in rollouts]


def load_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Put weights of these names into a model. Weights that the model ties to others may be missing.

    Raises:
        UserError: if one is unknown or missing.
    """
    report = model.load_state_dict(dict(weights), strict=False)
    tied = set(
        getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ()
    )
    wrong = [*report.unexpected_keys, *(set(report.missing_keys) - tied)]
    if wrong:
        raise UserError(
            f"the trainer sent weights that do not fit the rollout model, for example {sorted(wrong)[0]}; both must "
            "load the same model"
        )


def _alike(batch: Sequence[_Waiting]) -> list[list[_Waiting]]:
    """The requests in groups whose tokens are drawn in the same way."""
    groups: dict[Sampling, list[_Waiting]] = {}
    for each in batch:
        groups.setdefault(each.sampling, []).append(each)
    return list(groups.values())
