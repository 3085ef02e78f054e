"""The responses of one measurement, sampled by its policies and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from ctpo.errors import UserError
from ctpo.lab.fidelity.kept import Arrays, Kept
from ctpo.lab.fidelity.policies import Policies
from ctpo.lab.fidelity.samples import Samples, fitting, sample
from ctpo.lab.fidelity.sizes import Progress, Sizes
from ctpo.rollout import ToolRunner, TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, Task
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.recipe import Recipe
from ctpo.training.sampling.masking import is_masked
from ctpo.training.sampling.reward import reward_functions

_ROWS_AT_ONCE: Final = 256


class Sampler:
    """Samples responses to the problems that fit, half of which are for the reference."""

    def __init__(
        self,
        policies: Policies,
        task: Task,
        recipe: Recipe,
        config: CTPOConfig,
        problems: Sequence[Problem],
        sizes: Sizes,
        tools: ToolRunner | None,
    ) -> None:
        self._policies, self._task, self._tools, self._seed = policies, task, tools, sizes.seed
        self._group, self._half = config.num_generations, sizes.problems
        self._size = max(1, (recipe.rollout_batch_size or _ROWS_AT_ONCE) // self._group)
        self._rewards = reward_functions(task, recipe, config, lambda verdicts: None)
        self._weights = config.reward_weights
        self._masked = partial(
            is_masked,
            tokenizer=policies.tokenizer,
            task=task,
            truncated=config.mask_truncated_completions,
            void_turns=recipe.mask_void_turns,
        )
        self.sampling = Sampling(
            max_new_tokens=int(config.max_completion_length or 0),
            temperature=_temperature(config),
            top_k=config.top_k or 0,
            top_p=config.top_p,
        )
        engine = TransformersEngine(policies.target, policies.tokenizer)
        needed = 2 * sizes.problems
        self.problems, self.left_out = fitting(
            task, problems, policies.tokenizer, engine.room(self.sampling), needed, tools
        )
        if len(self.problems) < needed:
            raise UserError(_too_few(recipe, sizes, len(self.problems), self.left_out, self.sampling))

    def responses(
        self, kept: Kept, name: str, model: str, stream: int, start: int, progress: Progress
    ) -> tuple[Samples, list[str]]:
        """Responses of a model to half of the problems, from `start` on, and their digests."""
        chunks = -(-self._half // self._size)
        engine: TransformersEngine | None = None
        parts, digests = [], []

        def compute(chunk: int) -> Arrays:
            nonlocal engine
            if engine is None:
                engine = TransformersEngine(self._policies.load(model), self._policies.tokenizer)
            first = start + chunk * self._size
            problems = self.problems[first : min(first + self._size, start + self._half)]
            sampled = sample(
                engine,
                self._task,
                problems,
                self.sampling,
                self._rewards,
                group=self._group,
                seed=self._seed,
                stream=stream,
                first=first,
                tools=self._tools,
                weights=self._weights,
                masked=self._masked,
            )
            return sampled.arrays

        for chunk in range(chunks):
            progress(f"responses of {name}", chunk, chunks)
            arrays, held = kept.arrays(
                f"{name}/responses-{chunk:03d}", [f"rows {self._size}"], partial(compute, chunk)
            )
            parts.append(Samples.of_arrays(arrays))
            digests.append(held)
        return Samples.joined(parts), digests


def _too_few(recipe: Recipe, sizes: Sizes, usable: int, left_out: int, sampling: Sampling) -> str:
    """What to do about a task with too few problems."""
    if not usable and not left_out:
        return f"task {recipe.task!r} has no problems to sample responses to; take another task or dataset"
    room = (
        f" ({left_out} more leave no room in the model's context beside "
        f"max_completion_length={sampling.max_new_tokens}; lower that)"
        if left_out
        else ""
    )
    return (
        f"task {recipe.task!r} gives {usable} problems{room}, and --problems {sizes.problems} needs twice as many: "
        f"half of them for the reference; give at most --problems {usable // 2}"
    )


def _temperature(config: CTPOConfig) -> float:
    if not config.temperature > 0:
        raise UserError(f"temperature={config.temperature} samples nothing; use more than 0")
    return float(config.temperature)
