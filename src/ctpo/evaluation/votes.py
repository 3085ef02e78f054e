"""Which answers to a problem are votes for the same answer."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence

from ctpo.evaluation.judged import JudgedResponse
from ctpo.tasks import Task

_BUDGET_S = 30.0


def votes(task: Task, groups: Sequence[Sequence[JudgedResponse]]) -> list[list[Hashable]]:
    """What each response votes for, problem by problem: equal values are votes for the same answer.

    If the task's check knows which answers are equal (`equal`), then right answers are the same, and wrong ones are
    the same if each equals the first of them. Otherwise answers are the same if their texts are. Pairs for which there
    is no time left count as different.
    """
    equal = getattr(task.check, "equal", None)
    if equal is None:
        return [[response.extracted for response in group] for group in groups]
    first: list[dict[str, str]] = [{} for _ in groups]  # from an answer to the first answer that it equals
    waiting = [
        list(dict.fromkeys(r.extracted for r in group if r.extracted is not None and not r.correct))
        for group in groups
    ]
    deadline = time.monotonic() + _BUDGET_S
    while any(waiting) and time.monotonic() < deadline:
        pairs = [(texts[0], text) for texts in waiting for text in texts[1:]]
        same = {pair for pair, is_equal in zip(pairs, equal(pairs), strict=True) if is_equal}
        for known, texts in zip(first, waiting, strict=True):
            if texts:
                head = texts[0]
                known.update({text: head for text in texts if text == head or (head, text) in same})
                texts[:] = [text for text in texts if text not in known]
    return [
        [True if r.correct else known.get(r.extracted or "", r.extracted) for r in group]
        for known, group in zip(first, groups, strict=True)
    ]
