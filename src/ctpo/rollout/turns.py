"""The other side of a conversation: what reads a model's turns and answers them.

An engine knows tokens only. It shows turns to a `Partner`, and inserts the tokens of the answers. A partner may run
tools, be an environment, or be anything else that talks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from ctpo.rollout.records import ToolCall


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a model wrote since it was last answered.

    Example:
        Turn(response=0, ids=[7, 8], ended=True)
    """

    response: int
    """The number of the response: its prompt's place among the prompts of this `generate`."""
    ids: list[int]
    """The tokens that the model sampled since the last answer, the last one included."""
    ended: bool
    """Whether the model ended its turn, with an end-of-sequence token. If not, the last token may complete a call."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a partner says to a turn, and what it thinks of it.

    Example:
        Answer(ids=[9], reward=0.5).done  # False
    """

    ids: list[int]
    """The tokens that are appended to the response, as far as it has room. The model did not sample them, so their
    `response_mask` is 0."""
    calls: tuple[ToolCall, ...] = ()
    """The tool calls that the turn made."""
    reward: float | None = None
    """The reward of the turn, if turns have rewards of their own."""
    done: bool = False
    """Whether the response ends after `ids`. If not, the model goes on."""


class Partner(Protocol):
    """Reads what a model writes, and answers.

    An engine calls `begin` once per `generate`, and then `answer` with the turns that may be answered at this moment.
    It never shows a response again before its last turn has been answered. An answer must depend on its own response
    alone: which turns are shown together depends on the engine and on the batch.

    Example:
        class Echo:  # repeats each turn of the model, three times
            closing_characters, stops, answers_ends = "", (), True

            def begin(self, tokenizer, prompts):
                self.left = [3] * len(prompts)

            def listens_to(self, response):
                return self.left[response] > 0

            def answer(self, turns):
                for turn in turns:
                    self.left[turn.response] -= 1
                return [Answer(ids=turn.ids) for turn in turns]
    """

    @property
    def closing_characters(self) -> str:
        """The characters of which one ends every call in the middle of a turn; "" if only ended turns are answered."""

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts of which one stands at the end of every such call, for servers that take stop texts."""

    @property
    def answers_ends(self) -> bool:
        """Whether turns that the model has ended are shown too. If not, a response ends with its first turn."""

    def begin(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> None:
        """Prepare for one response to each of these prompts, given as token ids. No response has begun yet."""

    def listens_to(self, response: int) -> bool:
        """Whether turns of this response may still be answered. If not, they are not shown any more."""

    def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
        """The answer to each of these turns, in order. They are of different responses.

        None answers nothing. The model goes on if its turn has not ended, and otherwise the response ends. A turn
        without an answer is part of the next turn that is shown.
        """


PATIENCE: Final = 16
"""The `patience` with partners that may be slow."""


@runtime_checkable
class Patient(Partner, Protocol):
    """A partner that may take long, so that other responses go on meanwhile. It answers in a thread of its own.

    `listens_to` may then be called while it answers turns of other responses.
    """

    @property
    def patience(self) -> int:
        """How many tokens other responses are decoded by before a turn's answer is waited for; 0 to wait at once.

        Waiting costs steps in which a response does not grow. It saves time where an answer takes longer than a step.
        """


@runtime_checkable
class Accountable(Partner, Protocol):
    """A partner that counts what its answers cost, for the records of a run."""

    @property
    def seconds(self) -> float:
        """The time spent on answers since `reset_account`, in seconds."""

    @property
    def executed(self) -> int:
        """How many tool calls really ran since then. Others were answered from memory."""

    def reset_account(self) -> None:
        """Set both to 0."""
