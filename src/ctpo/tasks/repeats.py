"""Problems that occur more than once: within a dataset, and in both training and held-out problems."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Sequence

from ctpo.errors import Notice
from ctpo.tasks.prompts import Prompt, asked, prompt_key
from ctpo.tasks.task import Problem


def tell_repeats(what: str, problems: Sequence[Problem]) -> None:
    """Warn, in one line, of prompts that are repeated, also with another answer, and of ids with several prompts.

    Args:
        what: the words that name the problems.
        problems: all of them.
    """
    sentences = repeats(problems)
    if sentences:
        warnings.warn(f"{what}: {'; '.join(sentences)}", Notice, stacklevel=3)


def repeats(problems: Sequence[Problem]) -> list[str]:
    """What is repeated, in one sentence for prompts, one for answers that differ, and one for ids."""
    by_prompt: dict[str, Problem] = {}
    by_id: dict[str, str] = {}
    repeated: list[Problem] = []
    differing: list[tuple[Problem, Problem]] = []
    shared: list[str] = []
    for problem in problems:
        key = prompt_key(problem.prompt)
        first = by_prompt.setdefault(key, problem)
        if first is not problem:
            repeated.append(problem)
            if first.answer != problem.answer:
                differing.append((first, problem))
        if by_id.setdefault(problem.id, key) != key:
            shared.append(problem.id)
    sentences = []
    if repeated:
        sentences.append(
            f"{len(repeated)} of {len(problems)} problems repeat an earlier prompt, the first is {repeated[0].id}"
        )
    if differing:
        one, other = differing[0]
        sentences.append(
            f"{len(differing)} of these have another answer: {one.answer[:40]!r} in {one.id} and "
            f"{other.answer[:40]!r} in {other.id}"
        )
    if shared:
        sentences.append(f"{len(set(shared))} ids belong to several prompts, the first is {shared[0]}")
    return sentences


def overlap(
    train: Iterable[Problem], held_out: Iterable[Problem], *, by_answer: bool = False
) -> list[Problem]:
    """The held-out problems that also occur among the training problems.

    Two problems are the same if what the user asks is, apart from capitals, spaces and forms of the same character.

    Args:
        by_answer: whether the answers must be the same too. An environment may ask one question of all problems.
    """

    def key(problem: Problem) -> tuple[str, str]:
        return _normal(problem.prompt), problem.answer if by_answer else ""

    trained = {key(problem) for problem in train}
    return [problem for problem in held_out if key(problem) in trained]


def _normal(prompt: Prompt) -> str:
    return " ".join(unicodedata.normalize("NFKC", asked(prompt)).casefold().split())
