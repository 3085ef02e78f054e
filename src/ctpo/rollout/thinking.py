"""Which parts of a model's text are thinking. What is called there is not run, and no environment reads it."""

from __future__ import annotations

import re
from typing import Final

_PAIRS: Final = {
    "<think>": "</think>",  # Qwen, DeepSeek, GLM, Nemotron, SmolLM, LFM
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",  # Mistral
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command
    "<|channel|>analysis<|message|>": "<|end|>",  # gpt-oss
    "<|channel>thought": "<channel|>",  # Gemma 4
}
_OPENS: Final = re.compile("|".join(map(re.escape, _PAIRS)))
_CLOSES: Final = re.compile("|".join(map(re.escape, _PAIRS.values())))


def next_thought(text: str, start: int) -> int | None:
    """Return where the next thinking begins at or after `start`, or None."""
    match = _OPENS.search(text, start)
    return None if match is None else match.start()


def thought_end(text: str, start: int) -> int:
    """Return where the thinking that begins at `start` ends; the length of the text if it does not."""
    opening = _OPENS.match(text, start)
    if opening is None:  # it began before the text
        closing = _CLOSES.search(text, start)
        return len(text) if closing is None else closing.end()
    close = _PAIRS[opening[0]]
    place = text.find(close, opening.end())
    return len(text) if place < 0 else place + len(close)


def ends_thinking(text: str) -> bool:
    """Return whether the text ends in the middle of thinking."""
    place = 0
    while (begin := next_thought(text, place)) is not None:
        place = thought_end(text, begin)
        if place == len(text) and not text.endswith(_PAIRS[_OPENS.match(text, begin)[0]]):  # type: ignore[index]
            return True
    return False


def after_thoughts(text: str) -> int:
    """Return where the last thinking of the text ends; 0 without one."""
    return max((match.end() for match in _CLOSES.finditer(text)), default=0)


def without_thoughts(text: str, *, opened: bool) -> str:
    """Return a model's turn without its thinking. A thought that does not end hides all that follows it.

    Args:
        opened: whether the turn begins inside of a thought.
    """
    kept: list[str] = []
    place = thought_end(text, 0) if opened else 0
    while (start := next_thought(text, place)) is not None:
        kept.append(text[place:start])
        place = thought_end(text, start)
    return "".join([*kept, text[place:]])
