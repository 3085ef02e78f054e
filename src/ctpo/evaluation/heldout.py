"""Accuracy on held-out problems, one response to each: what training measures while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctpo.evaluation.judged import JudgedResponse, graded_figure, reward_figures, sample_problems
from ctpo.evaluation.metrics import mean_and_error
from ctpo.rollout import ToolRunner, TransformersEngine, VLLMEngine
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task
from ctpo.tasks.prompts import prompt_text

_TRANSCRIPT_KEYS = ("id", "prompt", "answer", "completion", "correct", "score", "finished", "calls")
_TURN_REWARDS = "turn_rewards"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One judged response to each held-out problem that was drawn."""

    responses: list[JudgedResponse]

    @property
    def accuracy(self) -> float:
        """pass@1: the mean score, which is the share of right answers if answers are right or wrong."""
        return mean_and_error([response.score for response in self.responses])[0]

    @property
    def standard_error(self) -> float:
        """The standard error of `accuracy`, problems independent: sqrt(p (1 − p) / (n − 1)) for right or wrong."""
        return mean_and_error([response.score for response in self.responses])[1]

    @property
    def figures(self) -> list[list[float]]:
        """What an evaluation is to find out, with one value per problem: the score, and the environment's reward.

        A response that the environment could not score counts as 0.
        """
        scores = [response.score for response in self.responses]
        if not any(response.turn_rewards for response in self.responses):
            return [scores]
        return [scores, [response.reward or 0.0 for response in self.responses]]

    def transcripts(self, count: int) -> list[dict[str, Any]]:
        """The first `count` responses as JSON objects, each with its problem, verdict and tool calls.

        A prompt of messages is written as text, for people to read.
        """
        records = [
            {**response.record(), "prompt": prompt_text(response.problem.prompt)}
            for response in self.responses[:count]
        ]
        keys = (*_TRANSCRIPT_KEYS, _TURN_REWARDS)
        return [{key: record[key] for key in keys if key in record} for record in records]

    def summary(self) -> dict[str, float | bool]:
        """The figures that a run's summary keeps. Tool calls, tokens and finished are means over the problems."""
        n = len(self.responses)
        return {
            "pass@1": self.accuracy,
            "stderr": self.standard_error,
            **graded_figure(self.responses),
            **reward_figures(self.responses),
            "problems": n,
            "tool_calls": sum(len(response.calls) for response in self.responses) / n,
            "tokens": sum(response.tokens for response in self.responses) / n,
            "finished": sum(response.finished for response in self.responses) / n,
        }


def evaluate(
    engine: TransformersEngine | VLLMEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    tools: ToolRunner | None = None,
    seed: int = 0,
    places: Sequence[int] | None = None,
) -> Evaluation:
    """An evaluation with one response to each problem. A problem too long for the model's context counts as wrong.

    Args:
        seed: of the random numbers. Each problem has its own, so parts of a set can be evaluated separately.
        places: the position of each problem in the whole set, on which its random numbers depend; 0, 1, … by default.
    """
    return Evaluation(
        responses=sample_problems(engine, task, problems, sampling, tools=tools, seed=seed, places=places)
    )


def heldout_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The figures of an evaluation under the names that records and summaries use."""
    return {f"heldout_{name}": value for name, value in evaluation.summary().items()}


def gain(evaluation: Evaluation, first: Mapping[str, float]) -> dict[str, float]:
    """The difference in pass@1 between an evaluation of all problems and the run's first one, for its record.

    It is over the problems that both have. The first evaluation may have drawn fewer, in the same order. Empty if its
    record names no such number.

    Args:
        first: the record of the first evaluation.
    """
    both = int(first["heldout_problems"])
    if not 0 < both <= len(evaluation.responses):  # a record that somebody has changed
        return {}
    same = Evaluation(responses=evaluation.responses[:both])
    return {"heldout_gain": same.accuracy - first["heldout_pass@1"]}
