"""What a task is: where its problems come from, which tool it lends, and when an answer counts as right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ctpo.tasks.tool import PythonTool

SPLITS = ("train", "test")
EXAMPLE_ROLES = ("user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question of a task; its three fields become the columns of a training dataset."""

    prompt: str
    """The text the model continues; for a chat model, the content of the user's turn."""
    answer: str
    """The reference answer, in the form the task's `check` expects."""
    id: str
    """Stable name of the problem: the same problem has the same id in every run."""


class ProblemSource(Protocol):
    """Returns at most `count` problems of a split ("train" or "test"); equal arguments give equal problems."""

    def __call__(self, split: str, count: int, seed: int) -> list[Problem]: ...


class AnswerCheck(Protocol):
    """True where the completion's final answer equals the reference answer; never raises on odd text."""

    def __call__(self, completion: str, answer: str) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A verifiable task.

    A new one needs two functions:

        def problems(split: str, count: int, seed: int) -> list[Problem]: ...
        def check(completion: str, answer: str) -> bool: ...
        task = Task(name="dates", problems=problems, check=check, tool=PythonTool())

    `problems` must keep the splits disjoint whatever the seeds; `held_out` (splits.py) does so by a hash of
    the prompt.
    """

    name: str
    """Short name; reward metrics carry it."""
    problems: ProblemSource
    """Source of problems."""
    check: AnswerCheck
    """Judge of a completion: the decoded text, tool calls and their results included."""
    tool: PythonTool | None = None
    """The Python tool the model may use, or None for plain completion."""
    chat: bool = False
    """Whether a prompt is the user's turn of a conversation, put into the model's chat template."""
    system: str | None = None
    """The conversation's system message; implies `chat`."""
    examples: tuple[Mapping[str, str], ...] = ()
    """Worked examples before the problem, as messages with `role` (user, assistant, tool) and `content`; imply
    `chat`. A tool message holds what the program in the assistant's message before it printed."""
    extract: Callable[[str], str | None] | None = None
    """The final answer in a completion, in a form in which equal answers are equal strings; None where there is
    none. Lets an evaluation count majorities and unanswered problems; `check` does not need it."""
    reward: Callable[[str, str], float] | None = None
    """What training gives a completion against the reference answer, where that is more than 1 for right and 0 for
    wrong; like `check`, it never raises on odd text. Evaluations go by `check`."""

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name={self.name!r}: use letters, digits, '-' and '_', e.g. name='arithmetic'")
        for i, message in enumerate(self.examples):
            role, content = message.get("role"), message.get("content")
            if role not in EXAMPLE_ROLES or not isinstance(content, str):
                raise ValueError(
                    f"examples[{i}]={dict(message)!r}: give role ({', '.join(EXAMPLE_ROLES)}) and content (text)"
                )

    @property
    def conversational(self) -> bool:
        """Whether prompts go through the model's chat template."""
        return self.chat or self.system is not None or bool(self.examples)

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """The conversation that ends with this prompt as the user's turn."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        examples = [{"role": each["role"], "content": each["content"]} for each in self.examples]
        return [*system, *examples, {"role": "user", "content": prompt}]


def check_ready(task: Task) -> None:
    """Let a task's judge refuse now what it would only notice at the first answer that needs it.

    Raises:
        UserError: if a package it judges with is missing.
    """
    ready = getattr(task.check, "require", None)
    if ready is not None:
        ready()


def verdict(task: Task, completion: str, answer: str) -> str:
    """How a completion is judged: "right", or the judge's own word for why not, or "wrong"."""
    own = getattr(task.check, "verdict", None)
    if own is not None:
        return str(own(completion, answer))
    return "right" if task.check(completion, answer) else "wrong"


def validate_request(split: str, count: int) -> None:
    """Check what a problem source was asked for.

    Raises:
        ValueError: if the split is unknown or the count is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"count={count!r} is not a number of problems; use an integer of at least 0")


Completion = str | Sequence[dict[str, Any]]


def reward_function(task: Task) -> Callable[..., list[float]]:
    """Make a reward function in TRL's calling convention: the task's `reward`, else 1.0 for right and 0.0 for wrong.

    The function carries the task's name, so TRL logs `rewards/<task>/mean`.

    Args:
        task: the task whose `reward`, or else `check`, decides.

    Returns:
        `reward(prompts, completions, answer, **kwargs) -> list[float]`, one reward a completion. `answer` is
        the dataset column of that name; other columns and TRL's own keywords are ignored. A conversational
        completion is judged by the text of its last assistant message.
    """

    judge = task.reward or task.check

    def reward(
        prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[str], **kwargs: Any
    ) -> list[float]:
        if not len(prompts) == len(completions) == len(answer):
            raise ValueError(
                f"answer has {len(answer)} rows for {len(prompts)} prompts and "
                f"{len(completions)} completions; pass one of each a row"
            )
        return [float(judge(_text(c), a)) for c, a in zip(completions, answer, strict=True)]

    reward.__name__ = reward.__qualname__ = task.name
    return reward


def _text(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    spoken = [m.get("content") for m in completion if m.get("role") == "assistant"]
    return spoken[-1] if spoken and isinstance(spoken[-1], str) else ""
