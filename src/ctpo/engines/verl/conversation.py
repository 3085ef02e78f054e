"""One response that a server samples piece by piece, while the task's tools or environment answer between the pieces.

Nothing here imports verl or Ray: the server is any function that completes token ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ctpo.engines.verl.place import Judged, Place
from ctpo.rollout import Rollout
from ctpo.rollout.remote.row import CompletionRequest, Row, completion_ended
from ctpo.tasks import Problem
from ctpo.tasks.tool import SUCCESS


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What the server sampled for one request."""

    ids: list[int]
    logps: list[float]
    """The log-probability of each token in nats."""
    versions: tuple[int, ...] = ()
    """The versions of the weights that sampled it, the oldest first."""


Complete = Callable[[CompletionRequest], Awaitable[Piece]]
"""Asks a server for a completion."""


@dataclass(frozen=True, kw_only=True)
class Conversed:
    """A whole response, and what it is worth."""

    rollout: Rollout
    judged: Judged
    masked: bool
    """Whether the response is left out of the loss."""
    pieces: int
    """How often the server was asked."""
    versions: tuple[int, ...]
    """The versions of the weights that sampled it, in order."""
    sampling_s: float
    answering_s: float

    @property
    def mask(self) -> list[int]:
        """1 on the tokens that count in the loss."""
        own = self.rollout.response_mask
        return [0] * len(own) if self.masked else own

    def figures(self) -> dict[str, Any]:
        """What the records of a run take of a response."""
        calls = self.rollout.calls
        return {
            "acc": self.judged.response.score,
            "tokens": self.judged.response.tokens,
            "calls": len(calls),
            "failures": sum(call.status != SUCCESS for call in calls),
            "truncated": float(not self.rollout.finished),
            "masked": float(self.masked),
        }


async def converse(
    place: Place,
    tokenizer: PreTrainedTokenizerBase,
    problem: Problem,
    eos: Sequence[int],
    complete: Complete,
    turns: int | None = None,
) -> Conversed:
    """The response to one problem.

    Args:
        place: has the task, its tools and its judge.
        tokenizer: of the model.
        problem: of the task.
        eos: the token ids that end a turn of the model.
        complete: asks the server.
        turns: the most turns of the model; None for no limit.
    """
    prompt, partner = await asyncio.to_thread(place.begin, tokenizer, problem)
    row = Row(0, prompt, place.orders.max_tokens)
    versions: list[int] = []
    pieces, answering = 0, 0.0
    started = time.perf_counter()
    while not row.done and (turns is None or pieces < turns):
        request = row.request(partner)
        piece = await complete(request)
        pieces += 1
        versions += piece.versions
        ended = completion_ended(tokenizer, eos, request, piece.ids)
        row.append_sampled(piece.ids, piece.logps, ended=ended, eos=eos)
        if partner is not None and row.is_shown(partner) and pieces != turns:
            asked = time.perf_counter()
            (answer,) = await asyncio.to_thread(partner.answer, [row.turn()])
            answering += time.perf_counter() - asked
            if answer is not None:
                row.append_answer(answer)
    sampling = time.perf_counter() - started - answering
    judged = await asyncio.to_thread(place.end, tokenizer, problem, row.rollout, partner)
    return Conversed(
        rollout=row.rollout,
        judged=judged,
        masked=place.is_masked(tokenizer, row.rollout, judged),
        pieces=pieces,
        versions=tuple(versions),
        sampling_s=sampling,
        answering_s=answering,
    )
