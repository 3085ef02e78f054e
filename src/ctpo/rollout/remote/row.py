"""One response that is completed piece by piece, token ids in and token ids out.

A completion ends at a stop text, at the end of the model's turn, or where there is no more room. Then a partner may
answer, and the next completion begins after the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ctpo.rollout.records import Rollout
from ctpo.rollout.turns import Answer, Partner, Turn


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """What one row needs next."""

    ids: list[int]
    """All token ids so far: the prompt, the model's tokens and those of answers."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end the completion. The tokens that complete such a text are part of the completion."""
    seed: int | None = None


def completion_ended(
    tokenizer: PreTrainedTokenizerBase, eos: Sequence[int], request: CompletionRequest, ids: Sequence[int]
) -> bool:
    """Whether the model ended the turn, and not a stop text or the length limit the completion."""
    if not ids or ids[-1] in eos:
        return True
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    return len(ids) < request.max_new_tokens and not any(stop in text for stop in request.stop)


class Row:
    """One response that is being completed.

    Args:
        number: of the response, as its partner knows it.
        prompt: the token ids that it begins with.
        limit: the most tokens that it may have, those of answers included.
        uniforms: [limit], from which every completion gets a seed of its own; None for none.
    """

    def __init__(self, number: int, prompt: list[int], limit: int, uniforms: Tensor | None = None) -> None:
        self.number = number
        self.rollout = Rollout(prompt_ids=prompt)
        self.done = False
        """Whether nothing more is to be completed: the response has ended or has no room left."""
        self._uniforms = uniforms
        self._limit = limit
        self._turn_start = 0

    @property
    def _room(self) -> int:
        return self._limit - len(self.rollout.completion_ids)

    def is_shown(self, partner: Partner) -> bool:
        """Whether the turn that has just been completed is shown to the partner."""
        shown = partner.answers_ends if self.rollout.finished else not self.done
        return shown and partner.listens_to(self.number)

    def turn(self) -> Turn:
        """What the model wrote since the last answer."""
        ids = self.rollout.completion_ids[self._turn_start :]
        return Turn(response=self.number, ids=ids, ended=self.rollout.finished)

    def request(self, partner: Partner | None) -> CompletionRequest:
        """What is to be completed next."""
        # Where the partner does not listen any more, a stop would only interrupt the model.
        stops = partner.stops if partner is not None and partner.listens_to(self.number) else ()
        return CompletionRequest(
            ids=self.rollout.prompt_ids + self.rollout.completion_ids,
            max_new_tokens=self._room,
            stop=stops,
            seed=self._seed(),
        )

    def _seed(self) -> int | None:
        if self._uniforms is None:
            return None
        return int(self._uniforms[len(self.rollout.completion_ids)].double() * 2**31)

    def append_sampled(self, ids: list[int], logps: list[float], *, ended: bool, eos: Sequence[int]) -> None:
        """Append what the model has sampled.

        Args:
            ended: whether the model ended its turn.
            eos: the token ids that end a response.
        """
        ids, logps = ids[: self._room], logps[: self._room]
        self._append(ids, logps, sampled=1)
        self.rollout.finished = bool(ids) and ids[-1] in eos
        self.done = ended or not self._room

    def append_answer(self, answer: Answer) -> None:
        """Append what the partner answers."""
        rollout = self.rollout
        rollout.calls += answer.calls
        if answer.reward is not None:
            rollout.turn_rewards.append((len(rollout.completion_ids) - 1, answer.reward))
        ids = answer.ids[: self._room]
        self._append(ids, [0.0] * len(ids), sampled=0)
        self._turn_start = len(rollout.completion_ids)
        rollout.finished = answer.done
        self.done = answer.done or not self._room

    def _append(self, ids: list[int], logps: list[float], *, sampled: int) -> None:
        assert len(ids) == len(logps)
        self.rollout.completion_ids += ids
        self.rollout.logps += logps
        self.rollout.response_mask += [sampled] * len(ids)
