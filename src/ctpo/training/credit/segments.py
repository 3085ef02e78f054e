"""Rewards that functions gave to parts of a response, as rewards of turns: characters become tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ctpo.errors import UserError
from ctpo.tasks.rewards import SegmentReward
from ctpo.training.credit.turns import TurnRewards

Given = Sequence[float | None]
"""What one reward function gave each response."""


def has_segments(given: Sequence[Given]) -> bool:
    """Whether one of the functions gave rewards to parts."""
    return any(isinstance(value, SegmentReward) for values in given for value in values)


def segment_rewards(
    given: Sequence[Given], weights: Sequence[float], completion_ids: Sequence[Sequence[int]], tokenizer: Any
) -> list[TurnRewards]:
    """The rewards of each response's parts: pairs of the index of a part's last token, and its reward.

    What a function gave to a whole response is not among them; it counts in the last part, as for turns.

    Args:
        given: by each reward function to each response.
        weights: of the functions.
        completion_ids: the tokens of each response.
        tokenizer: decodes them.

    Raises:
        UserError: if a part ends after the text of its response.
    """
    tokens = TokenEnds(tokenizer)
    found: list[TurnRewards] = []
    for row, ids in enumerate(completion_ids):
        rewards: dict[int, float] = {}
        for values, weight in zip(given, weights, strict=True):
            value = values[row]
            if isinstance(value, SegmentReward) and value.parts and len(ids):
                places = tokens.last([end for end, _ in value.parts], ids)
                for place, (_, reward) in zip(places, value.parts, strict=True):
                    rewards[place] = rewards.get(place, 0.0) + weight * reward
        found.append(sorted(rewards.items()))
    return found


class TokenEnds:
    """Says which token holds a character of a response's text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words: dict[int, str] = {}

    def last(self, ends: Sequence[int], ids: Sequence[int]) -> list[int]:
        """The index of the token with which the first `end` characters are complete, for each rising end.

        The end of the text is the end of the response: special tokens behind it belong to the last part.

        Raises:
            UserError: if an end is beyond the text.
        """
        text = self._decode(ids)
        if ends[-1] > len(text):
            raise UserError(
                f"a SegmentReward has a part that ends at character {ends[-1]} of a response with {len(text)}; count "
                "in the whole text of the response without special tokens"
            )
        lengths: Sequence[int] | _Prefixes = self._lengths(ids, text) or _Prefixes(self, ids)
        return [len(ids) - 1 if end == len(text) else bisect_left(lengths, end) for end in ends]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _lengths(self, ids: Sequence[int], text: str) -> list[int] | None:
        """How many characters there are up to each token; None if tokens do not decode one by one."""
        new = [each for each in dict.fromkeys(ids) if each not in self._words]
        words = self._tokenizer.batch_decode([[each] for each in new], skip_special_tokens=True)
        self._words.update(zip(new, words, strict=True))
        if "".join(self._words[each] for each in ids) != text:
            return None
        total, lengths = 0, []
        for each in ids:
            total += len(self._words[each])
            lengths.append(total)
        return lengths


class _Prefixes(Sequence[int]):
    """The number of characters that the tokens up to each index decode to, where tokens depend on their neighbours.

    A character of several tokens may be there before its last token, as U+FFFD; it is complete only afterwards.
    """

    def __init__(self, ends: TokenEnds, ids: Sequence[int]) -> None:
        self._ends, self._ids = ends, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Any:
        return len(self._ends._decode(self._ids[: index + 1]).rstrip("\ufffd"))
