"""The responses that are being decoded: every token, who wrote it, and its log-probability.

Shape legend: B responses, N new tokens at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctpo.rollout.records import Rollout, ToolCall

SHRINK_BELOW = 0.75
"""Finished rows leave the batch once the share of rows still decoding is at most this. Each time copies the cache."""
_NOT_FORCED = -1  # in a table of token ids


class Responses:
    """Responses of different lengths. `_alive` holds those that are still in the decoder's batch, in its order."""

    def __init__(self, prompts: list[list[int]], max_new_tokens: int, device: torch.device) -> None:
        shape = (len(prompts), max_new_tokens)
        self._prompts = prompts
        self._limit = max_new_tokens
        self._tokens_BN = torch.zeros(shape, dtype=torch.long, device=device)
        self._sampled_BN = torch.zeros(shape, dtype=torch.bool, device=device)
        self._logps_BN = torch.zeros(shape, dtype=torch.float32, device=device)
        self._forced_BN = torch.full(shape, _NOT_FORCED, dtype=torch.long, device=device)
        self._length_B = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self._ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self._alive = torch.arange(len(prompts), device=device)
        self._turn_start = [0] * len(prompts)
        self.calls: list[list[ToolCall]] = [[] for _ in prompts]

    def active(self) -> Tensor:
        """For each decoding row, whether the response has not ended and has room for another token."""
        rows = self._alive
        return ~self._ended_B[rows] & (self._length_B[rows] < self._limit)

    def cursor(self) -> tuple[Tensor, Tensor]:
        """The index of each decoding row's response, and the position of its next token."""
        return self._alive, self._length_B[self._alive].clamp(max=self._limit - 1)

    def write(self, tokens: Tensor, logps: Tensor) -> tuple[Tensor, Tensor]:
        """Append one token to each active row: the sampled one, or the next token of a tool's output.

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
        active = self.active()
        if active.float().mean() > SHRINK_BELOW:
            return None
        keep = active.nonzero().squeeze(-1)
        self._alive = self._alive[keep]
        return keep

    def since_last_output(self, rows: Tensor) -> list[tuple[int, int, list[int]]]:
        """For each of these decoding rows: the row, its response, and the response's tokens since the last output."""
        responses = self._alive[rows]
        lengths = self._length_B[responses].tolist()
        tokens = self._tokens_BN[responses, : max(lengths, default=0)].tolist()
        return [
            (row, response, ids[self._turn_start[response] : length])
            for row, response, ids, length in zip(
                rows.tolist(), responses.tolist(), tokens, lengths, strict=True
            )
        ]

    def room(self, responses: Sequence[int]) -> list[int]:
        """How many more tokens each response has room for."""
        lengths: list[int] = self._length_B[list(responses)].tolist()
        return [self._limit - length for length in lengths]

    def force(self, responses: Sequence[int], ids: Sequence[list[int]], *, at_once: bool) -> None:
        """Append a tool's tokens to each response, now (`at_once`) or one in each of the next calls of `write`."""
        starts = self._length_B[list(responses)].tolist()
        held = self._tokens_BN if at_once else self._forced_BN
        for response, given, start in zip(responses, ids, starts, strict=True):
            held[response, start : start + len(given)] = torch.tensor(given, device=held.device)
            self._turn_start[response] = start + len(given)
            if at_once:
                self._length_B[response] = start + len(given)

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
                calls=self.calls[i],
                finished=ended[i],
            )
            for i, (prompt, length) in enumerate(zip(self._prompts, self._length_B.tolist(), strict=True))
        ]
