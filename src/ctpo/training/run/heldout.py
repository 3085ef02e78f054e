"""Evaluates the model during training, on problems that it never trains on."""

from __future__ import annotations

from accelerate.utils import gather_object

from ctpo.evaluation import Evaluation, evaluate
from ctpo.evaluation.blocks import drawing_order, next_block
from ctpo.evaluation.heldout import heldout_metrics
from ctpo.evaluation.model import HELDOUT_SEED
from ctpo.rollout import ToolRunner
from ctpo.runs.directory import RunDirectory
from ctpo.tasks import Problem, Task
from ctpo.training.config.recipe import Recipe
from ctpo.training.processes import share
from ctpo.training.run.shared import shared_evaluation
from ctpo.training.sampling.rollout_func import open_engine, sampling_of
from ctpo.training.view import SamplingView


class HeldOut:
    """Samples one response per held-out problem drawn, with the settings of training, and writes transcripts."""

    def __init__(
        self,
        trainer: SamplingView,
        task: Task,
        problems: list[Problem],
        tools: ToolRunner | None,
        run: RunDirectory,
        recipe: Recipe,
        *,
        trained_on: int = 0,
    ) -> None:
        self.trained_on = trained_on
        """How many of the problems are also training problems."""
        self._trainer, self._task, self._problems, self._tools = trainer, task, problems, tools
        self._run, self._recipe = run, recipe
        self._order = drawing_order(len(problems), HELDOUT_SEED)

    def __call__(self, batch: int, *, stderr: float = 0.0) -> Evaluation:
        """The evaluation after this many rollout batches. Every process must call.

        Each process samples its share of the problems, and all get the whole evaluation. It does not depend on the
        number of processes.

        Args:
            stderr: the standard error at which it ends before all problems are used (`next_block`); 0 uses all.
        """
        trainer = self._trainer
        processes, index = trainer.accelerator.num_processes, trainer.accelerator.process_index
        evaluation = Evaluation(responses=[])
        with open_engine(trainer, self._recipe.rollout_batch_size) as engine:
            while count := next_block(evaluation.figures, len(self._problems), stderr):
                done = len(evaluation.responses)
                part = share(count, processes, index)
                places = self._order[done + part.start : done + part.stop]
                responses = evaluate(
                    engine,
                    self._task,
                    [self._problems[place] for place in places],
                    sampling_of(trainer),
                    tools=self._tools,
                    seed=HELDOUT_SEED,
                    places=places,
                ).responses
                # The parts of all processes are joined in the order of the problems.
                joined = gather_object(responses) if processes > 1 else responses
                evaluation = Evaluation(responses=[*evaluation.responses, *joined])
        if index == 0:
            self._run.write_transcripts(batch, evaluation.transcripts(self._recipe.transcripts))
        return evaluation

    def due(self, batch: int, last: int) -> bool:
        """Whether a run of `last` rollout batches is evaluated after this one."""
        every = self._recipe.eval_every
        return batch == last or bool(every and batch % every == 0)

    def before(self) -> dict[str, float]:
        """The figures of the evaluation before training, which another run of a comparison may have stored."""
        trainer = self._trainer

        def measure() -> dict[str, float]:
            return heldout_metrics(self(0, stderr=self._recipe.eval_stderr))

        if trainer.accelerator.num_processes > 1:
            return measure()
        return shared_evaluation(self._recipe, trainer.model, self._problems, sampling_of(trainer), measure)
