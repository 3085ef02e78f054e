"""Accuracy on held-out problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ctpo.rollout import Rollout, ToolRunner, TransformersEngine, VLLMEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.noise import row_uniforms
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One sample a problem, judged."""

    problems: list[Problem]
    rollouts: list[Rollout]
    texts: list[str]
    """The responses as text, tool calls and outputs included."""
    correct: list[bool]

    @property
    def accuracy(self) -> float:
        """pass@1: the share of right answers."""
        return pass_at_1(self.correct)[0]

    @property
    def standard_error(self) -> float:
        return pass_at_1(self.correct)[1]

    def transcripts(self, count: int) -> list[dict[str, Any]]:
        """The first `count` responses, each with its problem, verdict, and tool calls."""
        rows = zip(self.problems, self.rollouts, self.texts, self.correct, strict=True)
        return [
            {
                "id": problem.id,
                "prompt": problem.prompt,
                "answer": problem.answer,
                "completion": text,
                "correct": correct,
                "finished": rollout.finished,
                "calls": [asdict(call) for call in rollout.calls],
            }
            for problem, rollout, text, correct in list(rows)[:count]
        ]

    def summary(self) -> dict[str, float]:
        """The figures that a run's summary keeps."""
        rows = len(self.rollouts)
        return {
            "pass@1": self.accuracy,
            "stderr": self.standard_error,
            "problems": rows,
            "tool_calls": sum(len(rollout.calls) for rollout in self.rollouts) / rows,
            "tokens": sum(sum(rollout.model_mask) for rollout in self.rollouts) / rows,
            "finished": sum(rollout.finished for rollout in self.rollouts) / rows,
        }


def pass_at_1(correct: Sequence[bool]) -> tuple[float, float]:
    """Share of right answers p and its standard error sqrt(p (1 − p) / (n − 1)), problems independent.

    Raises:
        ValueError: for no answers at all.
    """
    n = len(correct)
    if n == 0:
        raise ValueError("no problems were evaluated; ask for at least one")
    p = sum(correct) / n
    return p, math.sqrt(p * (1 - p) / max(n - 1, 1))


def evaluate(
    engine: TransformersEngine | VLLMEngine,
    task: Task,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    tools: ToolRunner | None = None,
    seed: int = 0,
    first: int = 0,
) -> Evaluation:
    """Sample one response a problem and check it; a prompt too long for the model's context is not solved.

    Each problem has random numbers of its own, so that an evaluation in the middle of training changes nothing
    about the training, two evaluations of the same weights agree, and parts of a set may be evaluated apart:
    `first` is where in the whole set these problems begin.
    """
    tokenizer = engine.tokenizer
    if tools is not None:
        tools.reset_account()
    prompts = [encode_prompt(tokenizer, task, problem.prompt) for problem in problems]
    fits = [engine.fits(prompt, sampling) for prompt in prompts]
    # Where none fits, the engine's own message says what is wrong.
    asked = [i for i, fit in enumerate(fits) if fit] or list(range(len(prompts)))
    sampled = iter(
        engine.generate(
            [prompts[i] for i in asked],
            sampling,
            tools=tools,
            uniforms=row_uniforms([first + i for i in asked], sampling.max_new_tokens, seed=seed),
        )
    )
    rollouts = [
        next(sampled) if fit else Rollout(prompt_ids=prompt)
        for prompt, fit in zip(prompts, fits, strict=True)
    ]
    texts = [tokenizer.decode(rollout.completion_ids, skip_special_tokens=True) for rollout in rollouts]
    correct = [
        bool(rollout.completion_ids) and task.check(text, problem.answer)
        for rollout, text, problem in zip(rollouts, texts, problems, strict=True)
    ]
    return Evaluation(problems=list(problems), rollouts=rollouts, texts=texts, correct=correct)
