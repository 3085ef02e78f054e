"""The responses that are being decoded: every token, who wrote it, and its log-probability.

Shape legend: B responses, N new tokens at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctpo.rollout.records import Rollout
from ctpo.rollout.turns import Answer

SHRINK_BELOW = 0.75
"""Finished rows leave the batch once the share of rows still decoding is at most this. Each time copies the cache."""
_NOT_FORCED = -1  # in a table of token ids


class Responses:
    """Responses of different lengths. `_alive` holds those that are still in the decoder's batch, in its order."""

    def __init__(self, prompts: list[list[int]], limits: Sequence[int], device: torch.device) -> None:
        shape = (len(prompts), max(limits, default=0))
        self._prompts = prompts
        self._limit_B = torch.tensor(limits, dtype=torch.long, device=device)
        self._tokens_BN = torch.zeros(shape, dtype=torch.long, device=device)
        self._sampled_BN = torch.zeros(shape, dtype=torch.bool, device=device)
        self._logps_BN = torch.zeros(shape, dtype=torch.float32, device=device)
        self._forced_BN = torch.full(shape, _NOT_FORCED, dtype=torch.long, device=device)
        self._length_B = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self._ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self._waiting_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self._alive = torch.arange(len(prompts), device=device)
        self._turn_start = [0] * len(prompts)
        self._answers: list[list[tuple[int, Answer]]] = [
            [] for _ in prompts
        ]  # each with its turn's last token

    def active(self) -> Tensor:
        """For each decoding row, whether the response gets another token: it has not ended, waits not and has room."""
        rows = self._alive
        return ~(self._ended_B | self._waiting_B)[rows] & (self._length_B < self._limit_B)[rows]

    def cursor(self) -> tuple[Tensor, Tensor]:
        """The index of each decoding row's response, and the position of its next token."""
        return self._alive, torch.minimum(self._length_B, self._limit_B - 1)[self._alive]

    def write(self, tokens: Tensor, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Append one token to each active row: the sampled one, or the next token of an answer.

        Returns:
            The token ids that the model is fed next, and for each row whether the model sampled its token.
        """
        (rows, columns), active = self.cursor(), self.active()
        forced = self._forced_BN[rows, columns]
        sampled = (forced == _NOT_FORCED) & active
        tokens = torch.where(forced == _NOT_FORCED, tokens, forced)
        for held, new in (
            (self._tokens_BN, tokens),
            (self._sampled_BN, sampled),
            (self._logps_BN, torch.where(sampled, logps, 0.0)),
        ):
            held[rows, columns] = torch.where(active, new, held[rows, columns])
        self._length_B[rows] += active
        return tokens, sampled

    def end(self, ended: Tensor) -> None:
        """Mark the decoding rows whose response the model has ended."""
        self._ended_B[self._alive] |= ended

    def shrink(self) -> Tensor | None:
        """The decoding rows to keep, if enough of them are done to drop those; otherwise None."""
        needed = self.active() | self._waiting_B[self._alive]
        if needed.float().mean() > SHRINK_BELOW:
            return None
        keep = needed.nonzero().squeeze(-1)
        self._alive = self._alive[keep]
        return keep

    def since_last_answer(self, rows: Tensor) -> list[tuple[int, list[int]]]:
        """For each of these decoding rows: its response, and the response's tokens since the last answer."""
        responses = self._alive[rows]
        lengths = self._length_B[responses].tolist()
        tokens = self._tokens_BN[responses, : max(lengths, default=0)].tolist()
        return [
            (response, ids[self._turn_start[response] : length])
            for response, ids, length in zip(responses.tolist(), tokens, lengths, strict=True)
        ]

    def room(self, responses: Sequence[int]) -> list[int]:
        """How many more tokens each response has room for."""
        left: list[int] = (self._limit_B - self._length_B)[list(responses)].tolist()
        return left

    def wait(self, responses: Sequence[int]) -> None:
        """Let these responses wait for the answers to their turns."""
        self._waiting_B[list(responses)] = True

    def resume(self, responses: Sequence[int]) -> list[int]:
        """The decoding rows of these responses, which wait no longer."""
        self._waiting_B[list(responses)] = False
        row_of = {response: row for row, response in enumerate(self._alive.tolist())}
        return [row_of[response] for response in responses]

    def take(self, responses: Sequence[int], answers: Sequence[Answer]) -> None:
        """Note the answer to the turn of each response. The response then goes on, unless the answer is the last."""
        lengths = self._length_B[list(responses)].tolist()
        for response, answer, length in zip(responses, answers, lengths, strict=True):
            self._answers[response].append((length - 1, answer))
        done = torch.tensor([answer.done for answer in answers], device=self._ended_B.device)
        self._ended_B[list(responses)] = done

    def force(self, response: int, ids: list[int], *, at_once: bool) -> None:
        """Append the tokens of an answer to a response, now (`at_once`) or one in each of the next calls of `write`."""
        start = int(self._length_B[response])
        held = self._tokens_BN if at_once else self._forced_BN
        held[response, start : start + len(ids)] = torch.tensor(ids, dtype=torch.long, device=held.device)
        self._turn_start[response] = start + len(ids)
        if at_once:
            self._length_B[response] = start + len(ids)

    def rollouts(self) -> list[Rollout]:
        """The responses in the order of the prompts."""
        tokens, sampled = self._tokens_BN.tolist(), self._sampled_BN.int().tolist()
        logps, ended = self._logps_BN.tolist(), self._ended_B.tolist()
        return [
            Rollout(
                prompt_ids=prompt,
                completion_ids=tokens[i][:length],
                response_mask=sampled[i][:length],
                logps=logps[i][:length],
                calls=[call for _, answer in self._answers[i] for call in answer.calls],
                turn_rewards=[
                    (at, answer.reward) for at, answer in self._answers[i] if answer.reward is not None
                ],
                finished=ended[i],
            )
            for i, (prompt, length) in enumerate(zip(self._prompts, self._length_B.tolist(), strict=True))
        ]
