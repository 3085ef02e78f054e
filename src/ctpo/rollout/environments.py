"""Conversations with environments: the `Partner` of a task that has one."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout.calls import Call, CallFormat, call_format
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.messages import Continuation
from ctpo.rollout.records import Rollout, ToolCall
from ctpo.rollout.seats import OutOfTime, Request, Seat, Seats, outcomes
from ctpo.rollout.template import Template
from ctpo.rollout.thinking import ends_thinking, without_thoughts
from ctpo.rollout.turns import PATIENCE, Accountable, Answer, Partner, Patient, Turn
from ctpo.tasks.environment import (
    DeclaredTool,
    Step,
    Unscorable,
    conversation,
    failure,
    method_name,
    opening,
    reward_of,
    step_of,
    use_of,
)
from ctpo.tasks.task import Problem, Task
from ctpo.tasks.tool import SUCCESS

_TAIL: Final = 8
"""Tokens at the end of a prompt among which the beginning of a thought is looked for."""


@dataclass(kw_only=True)
class _Talk:
    """One response and its environment."""

    seat: Seat
    problem: Problem
    continuation: Continuation | None = None
    """Writes the environment's messages as tokens; None where there are no tokens."""
    opened_thought: bool = False
    """Whether the model's turn begins inside of a thought, because the template has opened one."""
    turns: int = 0
    over: bool = False
    """Whether the environment is not asked any more."""
    lost: bool = False
    """Whether the environment did not return in time. Its thread may still be in the call."""

    def request(self, method: str, *arguments: Any) -> Request:
        return Request(seat=self.seat, method=method, arguments=arguments)


class EnvironmentRunner:
    """Lets environments answer the turns of a batch of responses. It is the `Partner` of a task with an environment.

    `open` resets one environment per response and gives the prompts; an engine then samples with this as its partner;
    `finish` lets the environments score the responses that ended early. All environments take a step together, each in
    a thread of its own, or on one event loop if their methods are coroutines.

    Tools and an environment work together: a turn with a tool call goes to the tools, any other to the environment.

    Args:
        task: with an environment.
        tools: the partner that runs the task's tools; None without tools.

    Attributes:
        seconds, executed: since `reset_account`, the seconds that environments and tools took, and the tool calls that
            really ran.
    """

    def __init__(self, task: Task, tools: Partner | None = None) -> None:
        assert task.environment is not None
        self._task, self._tools = task, tools
        self._seats = Seats(task.environment)
        self._talks: list[_Talk] = []
        self._format: CallFormat | None = None
        self._continuations: dict[bool, Continuation] = {}
        self._warned = False
        self.reset_account()

    @property
    def closing_characters(self) -> str:
        """The characters of which one ends every tool call in the middle of a turn."""
        caller = self._tools or self._format
        return "" if caller is None else caller.closing_characters

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts of which one stands at the end of every such call."""
        caller = self._tools or self._format
        return () if caller is None else caller.stops

    @property
    def answers_ends(self) -> bool:
        """True: an environment answers turns that the model has ended."""
        return True

    @property
    def patience(self) -> int:
        """An environment may be slow: a simulation, or a server. 0 if it says that it is not, and no tool is."""
        at_once = all(getattr(talk.seat.environment, "answers_at_once", False) for talk in self._talks)
        tools = self._tools.patience if isinstance(self._tools, Patient) else 0
        return tools if at_once else PATIENCE

    def reset_account(self) -> None:
        """Set seconds and executed to 0."""
        self._seconds, self._executed = 0.0, 0
        if isinstance(self._tools, Accountable):
            self._tools.reset_account()

    @property
    def seconds(self) -> float:
        """Seconds that environments and tools took."""
        return self._seconds + (self._tools.seconds if isinstance(self._tools, Accountable) else 0.0)

    @property
    def executed(self) -> int:
        """Tool calls that really ran."""
        return self._executed + (self._tools.executed if isinstance(self._tools, Accountable) else 0)

    @property
    def offers_tools(self) -> bool:
        """Whether the environments that were reset have tools of their own."""
        return bool(self._offered())

    def open(
        self, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], room: int | None = None
    ) -> list[list[int] | None]:
        """The token ids with which each response begins, after one environment per problem has been reset.

        Args:
            room: how many tokens a prompt may have; None for no limit.

        Returns:
            None for a prompt that has more. There is no response to it, and the others are numbered without it.

        Raises:
            UserError: if an environment raises an error, returns no messages, or takes too long.
        """
        self._tokenizer = tokenizer
        given = [
            opening(messages, talk.problem.prompt)
            for messages, talk in zip(self.reset(problems), self._talks, strict=True)
        ]
        offered = self._offered()
        self._format = call_format(tokenizer, offered, self._task.template_kwargs) if offered else None
        task = replace(self._task, tools=offered) if offered else self._task
        ids = [encode_prompt(tokenizer, task, prompt) for prompt in given]
        fits = [room is None or len(each) <= room for each in ids]
        for talk, prompt, each in zip(self._talks, given, ids, strict=True):
            talk.continuation = self._continuation(task.conversational or not isinstance(prompt, str))
            talk.opened_thought = ends_thinking(tokenizer.decode(each[-_TAIL:]))
        self._seats.give_back([talk.seat for talk, fit in zip(self._talks, fits, strict=True) if not fit])
        self._talks = [talk for talk, fit in zip(self._talks, fits, strict=True) if fit]
        return [each if fit else None for each, fit in zip(ids, fits, strict=True)]

    def reset(self, problems: Sequence[Problem]) -> list[list[dict[str, Any]]]:
        """The first messages of each conversation, which replace those that were open.

        Raises:
            UserError: as `open`.
        """
        self._leave()
        self._talks = [
            _Talk(seat=seat, problem=problem)
            for seat, problem in zip(self._seats.take(len(problems)), problems, strict=True)
        ]
        given = self._ask([talk.request("reset", talk.problem) for talk in self._talks])
        openings: list[list[dict[str, Any]]] = []
        for talk, value in zip(self._talks, given, strict=True):
            if isinstance(value, OutOfTime | Unscorable):
                reason = str(value) or f"takes more than step_timeout_s={self._task.step_timeout_s:g} seconds"
                raise UserError(f"{self._name(talk, 'reset')} {reason}; correct it")
            openings.append(conversation(self._checked(talk, "reset", value), self._name(talk, "reset")))
        return openings

    def begin(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> None:
        """Prepare the tools. The environments have been reset by `open`."""
        assert len(prompts) == len(self._talks), "open() the same problems first"
        if self._tools is not None:
            self._tools.begin(tokenizer, prompts)

    def listens_to(self, response: int) -> bool:
        """Whether the environment has not ended the response."""
        return not self._talks[response].over

    def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
        """What the tools answer to a turn, or else the environment if the turn has ended."""
        answers: list[Answer | None] = [None] * len(turns)
        if self._tools is not None:
            calling = [at for at, turn in enumerate(turns) if self._tools.listens_to(turn.response)]
            for at, answer in zip(calling, self._tools.answer([turns[at] for at in calling]), strict=True):
                answers[at] = answer
        self._use(turns, answers)
        ended = [at for at, turn in enumerate(turns) if turn.ended and answers[at] is None]
        replies = [self._reply(self._talks[turns[at].response], turns[at].ids) for at in ended]
        steps = self.step([turns[at].response for at in ended], replies)
        for at, step in zip(ended, steps, strict=True):
            talk = self._talks[turns[at].response]
            ids: list[int] = []
            if not talk.over:
                assert talk.continuation is not None
                ids = talk.continuation.ids(step.messages)
                talk.opened_thought = talk.continuation.opens_thought(step.messages)
            answers[at] = Answer(ids=ids, reward=step.reward, done=talk.over)
        return answers

    def _use(self, turns: Sequence[Turn], answers: list[Answer | None]) -> None:
        """Let environments that have tools run the calls of these turns, and put in what they answer."""
        if self._format is None:
            return
        calls = {at: self._calls(turn) for at, turn in enumerate(turns) if answers[at] is None}
        calls = {at: each for at, each in calls.items() if each}
        talks = {at: self._talks[turns[at].response] for at in calls}
        requests = [
            talk.request("use", _before(self._reply(talk, turns[at].ids), calls[at]), calls[at])
            for at, talk in talks.items()
        ]
        for (at, talk), value in zip(talks.items(), self._ask(requests), strict=True):
            self._executed += len(calls[at])
            step = self._used(talk, value, len(calls[at]))
            results = [message["content"] for message in step.messages]
            end = turns[at].ids[-1] if turns[at].ended else None
            ids = [] if talk.over else self._format.result_ids(self._tokenizer, calls[at], results, end=end)
            answers[at] = Answer(
                ids=ids, calls=tuple(map(_record, calls[at], results)), reward=step.reward, done=talk.over
            )

    def _used(self, talk: _Talk, value: Any, calls: int) -> Step:
        talk.turns += 1
        if isinstance(value, OutOfTime | Unscorable):
            reward = self._lose(talk, "use", value)
            return Step(messages=[{"role": "tool", "content": ""}] * calls, reward=reward, done=True)
        step = use_of(self._checked(talk, "use", value), calls, self._name(talk, "use"))
        talk.over = step.done
        if talk.over or talk.turns < self._task.max_turns:
            return step
        (reward,) = self._finish([talk], [""])
        return Step(messages=step.messages, reward=step.reward + reward, done=True)

    def _calls(self, turn: Turn) -> list[Call]:
        assert self._format is not None
        talk = self._talks[turn.response]
        text: str = self._tokenizer.decode(turn.ids)
        return self._format.calls(text, ended=turn.ended, continued=talk.turns > 0)

    def _offered(self) -> list[DeclaredTool]:
        """The tools that the environments declare."""
        schemas = getattr(self._talks[0].seat.environment, "schemas", None) if self._talks else None
        if schemas and self._task.all_tools:
            raise UserError(
                f"task {self._task.name!r} has tools, and so has its environment; give the functions to one of them"
            )
        return [DeclaredTool.of(schema) for schema in schemas or ()]

    def step(self, responses: Sequence[int], replies: Sequence[str]) -> list[Step]:
        """What the environments of these responses answer. The last allowed turn is `done`, whatever they say.

        A reward is NaN if the response cannot be scored.
        """
        talks = [self._talks[response] for response in responses]
        requests = [talk.request("step", reply) for talk, reply in zip(talks, replies, strict=True)]
        given = self._ask(requests)
        steps = [self._step(talk, value) for talk, value in zip(talks, given, strict=True)]
        late = [at for at, talk in enumerate(talks) if not talk.over and talk.turns >= self._task.max_turns]
        rewards = self._finish([talks[at] for at in late], [""] * len(late))
        for at, reward in zip(late, rewards, strict=True):
            steps[at] = Step(messages=[], reward=steps[at].reward + reward, done=True)
        return steps

    def finish(self, rollouts: Sequence[Rollout]) -> None:
        """Add the rewards of responses that ended before their environments ended them, and free all environments."""
        open_talks = [
            (talk, rollout) for talk, rollout in zip(self._talks, rollouts, strict=True) if not talk.over
        ]
        replies = [self._reply(talk, _last_turn(rollout)) for talk, rollout in open_talks]
        rewards = self._finish([talk for talk, _ in open_talks], replies)
        for (_, rollout), reward in zip(open_talks, rewards, strict=True):
            rollout.turn_rewards.append((len(rollout.completion_ids) - 1, reward))
        self._leave()

    def finish_texts(self, responses: Sequence[int], replies: Sequence[str]) -> list[float]:
        """The rewards of responses that ended early, of which there is only text."""
        return self._finish([self._talks[response] for response in responses], replies)

    def close(self) -> None:
        """Close the environments that have a `close`, and end their threads."""
        self._leave()
        self._seats.close()

    def _leave(self) -> None:
        self._seats.retire([talk.seat for talk in self._talks if talk.lost])
        self._seats.give_back([talk.seat for talk in self._talks if not talk.lost])
        self._talks = []

    def _ask(self, requests: Sequence[Request]) -> list[Any]:
        started = time.perf_counter()
        given = outcomes(requests, timeout_s=self._task.step_timeout_s)
        self._seconds += time.perf_counter() - started
        return given

    def _step(self, talk: _Talk, value: Any) -> Step:
        talk.turns += 1
        if isinstance(value, OutOfTime | Unscorable):
            return Step(messages=[], reward=self._lose(talk, "step", value), done=True)
        step = step_of(self._checked(talk, "step", value), self._name(talk, "step"))
        talk.over = step.done
        return step

    def _finish(self, talks: Sequence[_Talk], replies: Sequence[str]) -> list[float]:
        """What `finish` of each environment returns; 0 if it has none."""
        asked = [
            at for at, talk in enumerate(talks) if callable(getattr(talk.seat.environment, "finish", None))
        ]
        given = self._ask([talks[at].request("finish", replies[at]) for at in asked])
        rewards = [0.0] * len(talks)
        for at, value in zip(asked, given, strict=True):
            if isinstance(value, OutOfTime | Unscorable):
                rewards[at] = self._lose(talks[at], "finish", value)
            else:
                checked = self._checked(talks[at], "finish", value)
                rewards[at] = reward_of(checked, self._name(talks[at], "finish"))
        for talk in talks:
            talk.over = True
        return rewards

    def _lose(self, talk: _Talk, method: str, why: OutOfTime | Unscorable) -> float:
        """NaN, for a response that its environment does not score. The first one is warned of."""
        talk.over, talk.lost = True, isinstance(why, OutOfTime)
        if not self._warned:
            self._warned = True
            limit = f"takes more than step_timeout_s={self._task.step_timeout_s:g} seconds"
            reason = limit if isinstance(why, OutOfTime) else f"gives up ({why})"
            warnings.warn(
                f"{self._name(talk, method)} {reason}; responses without an answer are not scored",
                stacklevel=4,
            )
        return math.nan

    def _checked(self, talk: _Talk, method: str, value: Any) -> Any:
        if isinstance(value, UserError):
            raise value
        if isinstance(value, BaseException):
            raise failure(talk.seat.environment, method, talk.problem, value) from None
        return value

    def _name(self, talk: _Talk, method: str) -> str:
        return method_name(talk.seat.environment, method, talk.problem)

    def _continuation(self, conversational: bool) -> Continuation:
        if conversational not in self._continuations:
            self._continuations[conversational] = Continuation(
                Template(self._tokenizer, self._task.template_kwargs), conversational=conversational
            )
        return self._continuations[conversational]

    def _reply(self, talk: _Talk, ids: Sequence[int]) -> str:
        text = without_thoughts(self._tokenizer.decode(list(ids)), opened=talk.opened_thought)
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return text


def _before(reply: str, calls: Sequence[Call]) -> str:
    """What the model wrote before its calls."""
    return reply.partition(calls[0].text)[0]


def _record(call: Call, result: str) -> ToolCall:
    """The call as records show it."""
    return ToolCall(
        name=call.name,
        program=call.text,
        arguments=call.arguments,
        status=SUCCESS if call.error is None else "error",
        output=result,
    )


def _last_turn(rollout: Rollout) -> list[int]:
    """The tokens that the model sampled since it was last answered."""
    mask = rollout.response_mask
    first = len(mask) - mask[::-1].index(0) if 0 in mask else 0
    return rollout.completion_ids[first:]


@contextmanager
def open_environments(task: Task, tools: Partner | None) -> Iterator[EnvironmentRunner | None]:
    """A context with a runner of the task's environments; the context is None if the task has none."""
    if task.environment is None:
        yield None
        return
    runner = EnvironmentRunner(task, tools)
    try:
        yield runner
    finally:
        runner.close()
