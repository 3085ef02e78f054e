"""Evaluating the model in training on problems it never trains on."""

from __future__ import annotations

from ctpo.evaluation import Evaluation, evaluate
from ctpo.evaluation.model import HELDOUT_SEED
from ctpo.rollout import ToolRunner, TransformersEngine
from ctpo.tasks import Problem, Task
from ctpo.training.recipe import Recipe
from ctpo.training.rollout import sampling_of
from ctpo.training.rundir import RunDirectory
from ctpo.training.trainer import CTPOTrainer
from ctpo.training.vllm import vllm_engine


class HeldOut:
    """Samples one response to each held-out problem, as training samples them, and keeps transcripts."""

    def __init__(
        self,
        trainer: CTPOTrainer,
        task: Task,
        problems: list[Problem],
        tools: ToolRunner | None,
        run: RunDirectory,
        recipe: Recipe,
    ) -> None:
        self._trainer, self._task, self._problems, self._tools = trainer, task, problems, tools
        self._run, self._recipe = run, recipe

    def __call__(self, batch: int) -> Evaluation:
        """Evaluate after this many rollout batches."""
        trainer = self._trainer
        engine = (
            vllm_engine(trainer, alone=True)
            if trainer.use_vllm
            else TransformersEngine(
                trainer.accelerator.unwrap_model(trainer.model),
                trainer.processing_class,
                eos_token_ids=trainer.eos_token_ids,
                batch_size=self._recipe.rollout_batch_size,
            )
        )
        evaluation = evaluate(
            engine, self._task, self._problems, sampling_of(trainer), tools=self._tools, seed=HELDOUT_SEED
        )
        self._run.write_transcripts(batch, evaluation.transcripts(self._recipe.transcripts))
        return evaluation
