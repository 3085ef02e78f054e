"""What an agent loop needs of a recipe: the task, its tools and judge, and what is left out of the loss.

It travels to Ray's workers as JSON, and they need neither TRL nor the recipe. Nothing here imports verl or Ray.
"""

from __future__ import annotations

import copy
import json
import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from ctpo.evaluation.judged import JudgedResponse, judge
from ctpo.rollout import Partner, Rollout
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.environments import EnvironmentRunner
from ctpo.rollout.tools import ToolRunner, open_tools
from ctpo.tasks import Problem, get_task, reward_function
from ctpo.tasks.task import TEXTS, TURN_REWARDS, with_template_kwargs


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a recipe says about responses."""

    task: str
    tools: list[str] | None = None
    chat: bool = False
    """Whether prompts are conversations, because some of the problems are."""
    template_kwargs: dict[str, Any] | None = None
    timeout_s: float = 3.0
    memory_mb: int = 512
    unsafe_no_isolation: bool = False
    void_turns: str = "none"
    mask_truncated: bool = False
    overlong_buffer: int | None = None
    max_tokens: int = 512
    """The longest response."""

    def as_json(self) -> str:
        """The orders as one line of text, which `Place.of` reads."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a response is worth."""

    reward: float
    response: JudgedResponse
    """The response with the task's verdict."""
    scored: bool
    """Whether the response could be scored. If not, it has a reward of 0 and is left out of the loss."""


class Place:
    """Where one process lets responses talk to their tools and environments, and judges them.

    The sandbox, the answers that it remembers and the functions are shared by all responses.
    """

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        task = get_task(orders.task, orders.tools or ())
        self.task = with_template_kwargs(
            task if not orders.chat else replace(task, chat=True), orders.template_kwargs
        )
        self._reward = reward_function(self.task)
        self._open = ExitStack()
        self._tools: ToolRunner | None = self._open.enter_context(
            open_tools(
                self.task,
                timeout_s=orders.timeout_s,
                memory_mb=orders.memory_mb,
                unsafe_no_isolation=orders.unsafe_no_isolation,
            )
        )

    @staticmethod
    @cache
    def of(orders: str) -> Place:
        """The place of this process for these orders (`Orders.as_json`). It is made once."""
        return Place(Orders(**json.loads(orders)))

    def begin(self, tokenizer: PreTrainedTokenizerBase, problem: Problem) -> tuple[list[int], Partner | None]:
        """The token ids that a response begins with, and the partner that answers it.

        Every response has a partner of its own, since verl samples them apart from each other.
        """
        tools = copy.copy(self._tools)  # with a count of its own calls
        if self.task.environment is None:
            partner: Partner | None = tools
            prompt: list[int] | None = encode_prompt(tokenizer, self.task, problem.prompt)
        else:
            partner = environments = EnvironmentRunner(self.task, tools)
            (prompt,) = environments.open(tokenizer, [problem])
        assert prompt is not None
        if partner is not None:
            partner.begin(tokenizer, [prompt])
        return prompt, partner

    def end(
        self,
        tokenizer: PreTrainedTokenizerBase,
        problem: Problem,
        rollout: Rollout,
        partner: Partner | None,
    ) -> Judged:
        """The judgement on a response that has ended. Its environment is freed."""
        if isinstance(partner, EnvironmentRunner):
            partner.finish([rollout])
            partner.close()
        text = tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)
        columns = {TEXTS: [text], TURN_REWARDS: [rollout.turn_rewards], "id": [problem.id]}
        (reward,) = self._reward([problem.prompt], [text], [problem.answer], **columns)
        plain = JudgedResponse(
            problem=problem,
            sample=0,
            text=text,
            extracted=None,
            verdict=None,
            finished=rollout.finished,
            tokens=sum(rollout.response_mask),
            calls=rollout.calls,
            too_long=False,
            error=None,
            turn_rewards=[None if math.isnan(each) else each for _, each in rollout.turn_rewards],
        )
        (response,) = judge(self.task, [plain])
        scored = reward is not None and math.isfinite(reward)
        return Judged(
            reward=(float(reward) if scored and reward is not None else 0.0) + self._overlong(rollout),
            response=response,
            scored=scored,
        )

    def is_masked(self, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, judged: Judged) -> bool:
        """Whether a response is left out of the loss."""
        from ctpo.training.sampling.masking import is_masked

        truncated, void_turns = self.orders.mask_truncated, self.orders.void_turns
        return not judged.scored or is_masked(
            rollout,
            tokenizer,
            self.task,
            truncated=truncated,
            void_turns=void_turns,  # type: ignore[arg-type]
        )

    def _overlong(self, rollout: Rollout) -> float:
        """0 up to max_tokens − overlong_buffer tokens, then falling linearly to −1 (DAPO, equation 13)."""
        if self.orders.overlong_buffer is None:
            return 0.0
        over = len(rollout.completion_ids) - (self.orders.max_tokens - self.orders.overlong_buffer)
        return -min(max(over / self.orders.overlong_buffer, 0.0), 1.0)
