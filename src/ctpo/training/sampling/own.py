"""Our rollouts in a trainer that a script makes: for our tools, for a task, or for the engine's log-probs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

from datasets import Dataset

from ctpo.evaluation.model import HELDOUT_SEED
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.tools import open_tools
from ctpo.tasks import FunctionTool, Problem, PythonTool, Task
from ctpo.tasks.task import with_template_kwargs
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.recipe import DEFAULT_TRAIN_PROBLEMS
from ctpo.training.sampling.correction import mark_in_process
from ctpo.training.sampling.data import dataset_rows
from ctpo.training.sampling.rollout_func import make_rollout_func
from ctpo.training.view import SamplingView

_HELDOUT_PROBLEMS: Final = 128
"""Held-out problems of a task. An evaluation of TRL samples several responses to each."""
_REFUSED: Final = {"min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None}
"""Settings of TRL's generation that our engine does not take, with the values that change nothing."""


class OwnRollouts:
    """A `rollout_func` that samples with our engine, in process or in vLLM, and runs the tools of a task.

    The sandbox is opened with the first rollout. `close` closes it; another rollout opens it again.

    Args:
        task: its tools, its conversation and its environment.
        as_trl: whether texts are tokenised as TRL does it, for a task that was made for a script.
    """

    def __init__(self, task: Task, *, as_trl: bool) -> None:
        self._task, self._as_trl = task, as_trl
        self._rollout: Callable[[list[Any], Any], dict[str, Any]] | None = None
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)
        mark_in_process(self)

    def __call__(self, prompts: list[Any], trainer: SamplingView) -> dict[str, Any]:
        """What TRL expects of a `rollout_func`; see `make_rollout_func`."""
        if self._rollout is None:
            partner = self._stack.enter_context(open_tools(self._task))
            self._rollout = make_rollout_func(partner, task=self._task, encode=self.encode)
        return self._rollout(prompts, trainer)

    def close(self) -> None:
        """Close the sandbox, if it is open."""
        self._rollout = None
        self._stack.close()

    def encode(self, tokenizer: Any, prompt: Any) -> list[int]:
        """The tokens of a prompt that the model continues: with the tools, and as TRL makes them of a plain text."""
        if self._as_trl and isinstance(prompt, str) and not self._task.conversational:
            ids: list[int] = tokenizer(text=prompt)["input_ids"]
            return ids
        return encode_prompt(tokenizer, self._task, prompt)


def own_rollouts(
    args: CTPOConfig, task: Task | None, tools: Sequence[Any] | None, *, rollout_func: Any, environments: Any
) -> OwnRollouts | None:
    """The rollouts of ours that a trainer needs; None if TRL or its `rollout_func` samples.

    Ours are needed for a task, for a Python tool or a `FunctionTool`, and for `anchor="rollout"` without vLLM.

    Args:
        args: the trainer's settings.
        task: what it trains on, if it is a task.
        tools: what the model may call, beside the tools of the task.
        rollout_func: what the script gives; it comes before the task's own.
        environments: TRL's environments, which TRL samples with.

    Raises:
        ValueError: if the arguments exclude each other, or a setting of TRL's generation would have no effect.
    """
    if tools is not None and not isinstance(tools, list | tuple):
        raise ValueError(f"tools={tools!r:.60} is no list; write tools=[...]")
    ours = [each for each in tools or () if isinstance(each, PythonTool | FunctionTool)]
    reports = args.anchor == "rollout" and not args.use_vllm and environments is None
    if rollout_func is not None or not (task is not None or ours or reports):
        if ours:
            raise ValueError(
                f"tools holds {ours[0]!r:.60}, which our engine runs, and rollout_func is given; drop one of them"
            )
        return None
    if environments is not None:
        raise ValueError(
            "environment_factory is sampled by TRL, and task= and our tools by our engine; give the environment to the "
            "task instead: Task(environment=...)"
        )
    for name, nothing in _REFUSED.items():
        if getattr(args, name) != nothing:
            raise ValueError(
                f"{name}={getattr(args, name)!r} has no effect: our engine samples, which takes temperature, top_p and "
                "top_k only; drop it"
            )
    if task is not None and tools:
        raise ValueError("task and tools are both given; give the tools to the task: Task(tools=[...])")
    if task is not None:
        return OwnRollouts(with_template_kwargs(task, args.chat_template_kwargs), as_trl=False)
    template_kwargs = args.chat_template_kwargs or {}
    made = Task(
        name="script", problems=_none, check=_never, tools=tuple(tools or ()), template_kwargs=template_kwargs
    )
    return OwnRollouts(made, as_trl=True)


def training_data(task: Task, seed: int) -> Dataset:
    """The training problems of a task as a dataset, with the columns `prompt`, `answer` and `id`."""
    return _dataset(task.problems("train", DEFAULT_TRAIN_PROBLEMS, seed))


def heldout_data(task: Task) -> Dataset:
    """Held-out problems of a task as a dataset."""
    return _dataset(task.problems("test", _HELDOUT_PROBLEMS, HELDOUT_SEED))


def _dataset(problems: Sequence[Problem]) -> Dataset:
    return Dataset.from_list(dataset_rows(problems))


def _none(split: str, count: int, seed: int) -> list[Problem]:
    return []


def _never(completion: str, answer: str) -> bool:
    return False
