"""What a task consists of: a source of problems, a tool, and a check of answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from ctpo.errors import UserError, well_formed
from ctpo.tasks.calls import FUNCTION
from ctpo.tasks.functions import FunctionTool, as_tools
from ctpo.tasks.guard import Complaint, guarded, on_problem, place_of_function
from ctpo.tasks.prompts import Message, Prompt, checked_prompt, placed
from ctpo.tasks.rewards import RewardReader, SegmentReward
from ctpo.tasks.tool import PythonTool

SPLITS = ("train", "test")
EXAMPLE_ROLES = ("user", "assistant", "tool")
Tool = PythonTool | FunctionTool
"""What a model may call."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question of a task. Its fields become the columns of a training dataset.

    An unpaired surrogate in a field is read as U+FFFD, because tokenizers refuse it.

    Raises:
        ValueError: if the prompt is neither text nor a conversation that ends with the user's turn.

    Example:
        Problem(prompt="2 + 3 =", answer="5", id="sum-1").columns()["answer"]  # "5"
    """

    prompt: Prompt
    """The text that the model continues; for a chat model, the content of the user's turn. Or a conversation: a tuple
    of messages with `role` and `content`, the last of them the user's."""
    answer: str
    """The reference answer, in the form the task's `check` expects."""
    id: str
    """The name of the problem, which is the same in every run."""
    difficulty: float | str | None = None
    """Where a curriculum starts with this problem (`curriculum` in docs/reference/training.md): a number from 0 (always
    solved) to 1, or easy, normal or hard. None if it is unknown. Nothing else reads it."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "prompt", checked_prompt(self.prompt))
        except ValueError as error:
            raise ValueError(f"the prompt of problem {self.id} {error}") from None
        for name in ("answer", "id"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, well_formed(value))

    def columns(self) -> dict[str, Any]:
        """The problem as a row of a dataset, with a difficulty only if it is known."""
        row = dict(vars(self))
        if self.difficulty is None:
            del row["difficulty"]
        return row


class ProblemSource(Protocol):
    """Returns at most `count` problems of a split ("train" or "test"). Equal arguments give equal problems."""

    def __call__(self, split: str, count: int, seed: int) -> list[Problem]: ...


@runtime_checkable
class RatedSource(ProblemSource, Protocol):
    """A `ProblemSource` that reads rows, of which a column may hold the problems' difficulty."""

    def rated_by(self, column: str) -> ProblemSource:
        """The same problems with the difficulty in this column; `a.b` is the entry `b` of the column `a`."""
        ...


class AnswerCheck(Protocol):
    """Says whether the completion's final answer equals the reference answer. It must not raise on odd text.

    A check that grades returns a float from 0 to 1, the share that is right. It may be a `SegmentReward`, which says
    what each part of the response earned of it.
    """

    def __call__(self, completion: str, answer: str) -> bool | float: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task whose answers can be checked.

    A new task needs two functions:

        def problems(split: str, count: int, seed: int) -> list[Problem]: ...
        def check(completion: str, answer: str) -> bool: ...
        task = Task(name="dates", problems=problems, check=check, tool=PythonTool())

    `problems` must keep the splits disjoint for all seeds. `held_out` (splits.py) does so by a hash of the prompt.

    Raises:
        ValueError: if the name or an example is malformed.

    Example:
        task = Task(name="sums", problems=problems, check=lambda completion, answer: completion.strip() == answer)
        task.name  # "sums"
    """

    name: str
    """A short name, which reward metrics carry."""
    problems: ProblemSource
    """The source of problems."""
    check: AnswerCheck | None = None
    """The check of a completion: its decoded text, tool calls and their results included. Only a task with an
    environment can do without: a response is then right if its reward is at least `passing_reward`."""
    tool: PythonTool | None = None
    """The Python tool that the model may use, or None."""
    tools: Sequence[Callable[..., Any] | FunctionTool | PythonTool] = ()
    """Python functions that the model may call (`ctpo.tasks.functions`). They imply `chat`, because the chat template
    declares them. A Python tool among them becomes `tool`. Afterwards this holds a `FunctionTool` for each function."""
    chat: bool = False
    """Whether a prompt is the user's turn of a conversation, which the model's chat template renders."""
    system: str | None = None
    """The system message of the conversation. It implies `chat`. A prompt with a system message of its own keeps that
    one instead. A model whose chat template has no calls that can be read is told how to call the tools: where the text
    has `{how_to_call}`, or else below it. For any other model `{how_to_call}` is left out."""
    examples: tuple[Mapping[str, str], ...] = ()
    """Worked examples before the problem, as messages with `role` (user, assistant, tool) and `content`. They imply
    `chat`. A tool message holds the output of the program in the assistant's message before it."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template of every conversation, such as `{"enable_thinking": False}`."""
    extract: Callable[[str], str | None] | None = None
    """Returns the final answer of a completion in a form in which equal answers are equal strings, or None without an
    answer. An evaluation needs it to count majorities and unanswered problems. `check` does not need it."""
    environment: Callable[[], Any] | None = None
    """Makes an environment (`ctpo.tasks.environment`), which answers the turns of one response. The reward of the
    response is then the sum over its turns, unless the task has a `reward` of its own."""
    max_turns: int = 16
    """How many turns of a response the environment answers."""
    step_timeout_s: float = 60.0
    """How many seconds an environment may take to answer. Otherwise the response ends and is not scored."""
    passing_reward: float | None = 1.0
    """The least reward of a right response, in a task that has an environment and no check. None grades responses: the
    score of one is its reward, which must be from 0 to 1."""
    reward: Callable[[str, str], float | None] | None = None
    """Returns the training reward of a completion, given the reference answer. None leaves the completion unscored. A
    `SegmentReward` gives it part by part.
    Without it, the reward is the environment's; without that, it is the score that `check` gives.
    It must not raise on odd text. Evaluations use `check`, or the environment's reward if there is none."""

    def __post_init__(self) -> None:
        for part, complaint in _COMPLAINTS.items():
            object.__setattr__(self, part, guarded(getattr(self, part), part, complaint))
        self._take_tools()
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name={self.name!r}: use letters, digits, '-' and '_', e.g. name='arithmetic'")
        if self.environment is None and self.check is None:
            raise ValueError(f"task {self.name!r} has neither a check nor an environment; give one of them")
        if not callable(self.environment or dict):
            raise ValueError(
                f"environment={self.environment!r} is no factory; give a class or a function without arguments"
            )
        if isinstance(self.max_turns, bool) or not isinstance(self.max_turns, int) or self.max_turns < 1:
            raise ValueError(f"max_turns={self.max_turns!r} is not a positive integer; use at least 1")
        if not 0 < self.step_timeout_s < math.inf:
            raise ValueError(
                f"step_timeout_s={self.step_timeout_s!r} is out of range; use seconds, more than 0"
            )
        for i, message in enumerate(self.examples):
            role, content = message.get("role"), message.get("content")
            if role not in EXAMPLE_ROLES or not isinstance(content, str):
                raise ValueError(
                    f"examples[{i}]={dict(message)!r}: give role ({', '.join(EXAMPLE_ROLES)}) and content (text)"
                )

    def _take_tools(self) -> None:
        """Separate the Python tool from the functions, and make tools of these."""
        programs = [each for each in self.tools if isinstance(each, PythonTool)]
        if len(programs) + (self.tool is not None) > 1:
            raise ValueError(f"task {self.name!r} has two Python tools; give one, as tool= or in tools=[...]")
        functions = as_tools([each for each in self.tools if not isinstance(each, PythonTool)])
        object.__setattr__(self, "tool", programs[0] if programs else self.tool)
        object.__setattr__(self, "tools", functions)
        if self.tool is not None and any(each.name == FUNCTION for each in functions):
            raise ValueError(
                f"task {self.name!r}: {FUNCTION!r} is the name of the Python tool; give the function another: "
                "FunctionTool(function, name=...)"
            )

    @property
    def functions(self) -> tuple[FunctionTool, ...]:
        """The functions that the model may call."""
        return tuple(each for each in self.tools if isinstance(each, FunctionTool))

    @property
    def all_tools(self) -> tuple[Tool, ...]:
        """Everything that the model may call, the Python tool first."""
        return (*(() if self.tool is None else (self.tool,)), *self.functions)

    @property
    def conversational(self) -> bool:
        """Whether prompts go through the model's chat template."""
        return self.chat or self.system is not None or bool(self.examples) or bool(self.tools)

    def messages(self, prompt: str | Sequence[Message]) -> list[dict[str, str]]:
        """The conversation that ends with this prompt: the user's turn, or messages of which the last is one.

        The worked examples stand before it, and before them the system message: the prompt's own, or else the task's
        without the sentences on how to call tools.
        """
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*map(dict, prompt)]
        system = [] if self.system is None else [{"role": "system", "content": placed(self.system, "")}]
        if any(turn["role"] == "system" for turn in turns):
            leading = next((i for i, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
            system, turns = turns[:leading], turns[leading:]
        examples = [{"role": each["role"], "content": each["content"]} for each in self.examples]
        return [*system, *examples, *turns]


def _not_problems(value: Any) -> str | None:
    texts = (
        isinstance(each, Problem) and isinstance(each.answer, str) and isinstance(each.id, str)
        for each in value
    )
    if isinstance(value, list) and all(texts):
        return None
    return "return a list of ctpo.tasks.Problem whose prompt, answer and id are text"


def _not_truth(value: Any) -> str | None:
    # An array of numpy or torch with one element is a truth value; a text such as "wrong" would count as right.
    if isinstance(value, Collection) and not hasattr(value, "item"):
        return "return True or False"
    if isinstance(value, float) and not 0 <= value <= 1:
        return "return a share from 0 to 1, or True or False"
    return None


def _not_extracted(value: Any) -> str | None:
    return (
        None if value is None or isinstance(value, str) else "return the answer as text, or None without one"
    )


_COMPLAINTS: Final[Mapping[str, Complaint | None]] = {
    "problems": _not_problems,
    "check": _not_truth,
    "extract": _not_extracted,
    "reward": None,
}
"""The functions of a task, and what each may return."""


def as_conversation(task: Task, problems: Sequence[Problem]) -> Task:
    """The task for these problems: if one of the prompts is a conversation, all are, and a text is the user's turn."""
    if task.conversational or all(isinstance(problem.prompt, str) for problem in problems):
        return task
    return replace(task, chat=True)


_TAKEN: Final = frozenset(
    "conversation messages tools documents chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)
"""The arguments of a rendering that are no business of a chat template's options."""


def with_template_kwargs(task: Task, options: Mapping[str, Any] | None) -> Task:
    """The task with these keyword arguments for the chat template, beside its own.

    Raises:
        UserError: if they are not a mapping of names, or name an argument that the rendering itself gives.
    """
    if not options:
        return task
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise UserError(
            f"chat_template_kwargs={options!r} is no mapping of names to values; write for example "
            "{enable_thinking: false}"
        )
    taken = sorted(_TAKEN & options.keys())
    if taken:
        raise UserError(
            f"chat_template_kwargs.{taken[0]} cannot be set: the rendering itself gives it; drop it"
        )
    return replace(task, template_kwargs={**task.template_kwargs, **options})


def check_ready(task: Task) -> None:
    """Check that the task's judge has all it needs, before the first answer needs it.

    Raises:
        UserError: if something is missing, for example an optional package.
    """
    ready = getattr(task.check, "require", None)
    if ready is not None:
        ready()


RIGHT: Final = "right"
PARTLY_RIGHT: Final = "partly right"


class Judgement(NamedTuple):
    """What a task says of one completion."""

    verdict: str
    """"right", "partly right", or "wrong" or the judge's own word for why it is not right."""
    score: float
    """1 if right, 0 if not, and between the two if a part is right."""


def judgements(
    task: Task,
    completions: Sequence[str],
    answers: Sequence[str],
    problems: Sequence[str] = (),
    rewards: Sequence[float | None] = (),
) -> list[Judgement]:
    """The judgement on each completion.

    Args:
        task: whose check decides.
        completions, answers: the texts, and the reference answer of each.
        problems: the id of each problem, for errors of the task's own code.
        rewards: what the environment gave each completion, in a task without a check; None for one that it could not
            score, which is "unscored".

    Raises:
        UserError: if the task grades by rewards and one is not from 0 to 1.
    """
    if task.check is None:
        return [_by_reward(task, reward) for reward in rewards or [None] * len(completions)]
    own = getattr(task.check, "verdicts", None)
    if own is not None:
        return [_of_verdict(str(verdict)) for verdict in own(completions, answers)]
    given: list[Judgement] = []
    for i, (completion, answer) in enumerate(zip(completions, answers, strict=True)):
        with on_problem(problems[i] if problems else None):
            value = task.check(completion, answer)
            given.append(_graded(value) if isinstance(value, float) else _graded(float(bool(value))))
    return given


def _of_verdict(verdict: str) -> Judgement:
    return Judgement(verdict, float(verdict == RIGHT))


def _graded(score: float) -> Judgement:
    verdict = {0.0: "wrong", 1.0: RIGHT}.get(score, PARTLY_RIGHT)
    return Judgement(verdict, score if isinstance(score, SegmentReward) else float(score))


def _by_reward(task: Task, reward: float | None) -> Judgement:
    if reward is None:
        return Judgement("unscored", 0.0)
    if task.passing_reward is not None:
        return _of_verdict(RIGHT if reward >= task.passing_reward else "wrong")
    score = round(reward, 9)  # k times 1/k may be a little less or more than 1
    if not 0 <= score <= 1:
        raise UserError(
            f"task {task.name!r} grades by its environment's rewards, and one is {reward:g}; return rewards that "
            "sum to 0 to 1, or set passing_reward"
        )
    return _graded(score)


def validate_request(split: str, count: int) -> None:
    """Check the arguments of a problem source.

    Raises:
        ValueError: if the split is unknown or the count is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"count={count!r} is not a number of problems; use an integer of at least 0")


Completion = str | Sequence[dict[str, Any]]

TEXTS: Final = "response_text"
"""The column in which our rollouts give reward functions the whole text of each response. TRL's own text of a
conversation may lack thoughts and tool calls, which it takes out of the content."""

TURN_REWARDS: Final = "turn_rewards"
"""The column in which our rollouts give the rewards of each response's turns: pairs of the index of the turn's last
token in the response, and the reward."""


def whole_reward(turn_rewards: Sequence[tuple[int, float]]) -> float | None:
    """The sum of a response's turn rewards; None if one is NaN, because the environment could not score it."""
    total = math.fsum(reward for _, reward in turn_rewards)
    return None if math.isnan(total) else total


def reward_function(task: Task) -> Callable[..., list[float | None]]:
    """A reward function in TRL's calling convention: the task's `reward`, or 1.0 for right and 0.0 for wrong.

    A task with an environment and no `reward` has the sum of the turns' rewards, in the column `turn_rewards`.

    The function has the task's name, so TRL logs `rewards/<task>/mean`.

    Returns:
        `reward(prompts, completions, answer, **kwargs) -> list`, with one reward for each completion. `answer` is the
        dataset column of that name, and errors name the problem in the column `id`; other columns and TRL's own
        keywords are ignored. In a conversation, the text of the last assistant message is judged, or the whole
        response if the column `response_text` has it. None is TRL's word for a completion that is not scored, and
        stands for a reward that is not finite too, which is warned of once.

    Raises:
        UserError: if the task's `reward` returns what is not a number.

    Example:
        task = Task(name="sums", problems=problems, check=lambda completion, answer: completion.strip() == answer)
        reward_function(task)(["2 + 3 =", "1 + 1 ="], [" 5", " 3"], answer=["5", "2"])  # [1.0, 0.0]
    """
    place = "" if task.reward is None else f" ({place_of_function(task.reward)})"
    reader = RewardReader(f"task {task.name!r}{place}")

    def reward(
        prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[str], **kwargs: Any
    ) -> list[float | None]:
        if not len(prompts) == len(completions) == len(answer):
            raise ValueError(
                f"answer has {len(answer)} rows for {len(prompts)} prompts and "
                f"{len(completions)} completions; pass one of each per row"
            )
        texts = kwargs.get(TEXTS) or [_text(completion) for completion in completions]
        if task.reward is not None:
            names = kwargs.get("id") or [f"with the answer {a!r}" for a in answer]
            rewards: list[float | None] = []
            for text, a, name in zip(texts, answer, names, strict=True):
                with on_problem(name if kwargs.get("id") else None):
                    rewards.append(reader.read(task.reward(text, a), name))
            return rewards
        if task.environment is not None:
            return [whole_reward(turns) for turns in kwargs[TURN_REWARDS]]
        return [judgement.score for judgement in judgements(task, texts, answer, kwargs.get("id") or ())]

    reward.__name__ = reward.__qualname__ = task.name
    return reward


def _text(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    contents = [m.get("content") for m in completion if m.get("role") == "assistant"]
    return contents[-1] if contents and isinstance(contents[-1], str) else ""
