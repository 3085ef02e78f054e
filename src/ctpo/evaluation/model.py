"""Evaluating a saved model."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.evaluation.heldout import Evaluation, evaluate
from ctpo.rollout import TransformersEngine
from ctpo.rollout.engine import Sampling
from ctpo.rollout.tools import open_tools
from ctpo.tasks import Task

HELDOUT_SEED = 20_260_508
"""Draws the held-out problems and the sampling noise: the same everywhere, so that figures can be compared."""


def evaluate_model(
    location: str,
    task: Task,
    *,
    count: int,
    sampling: Sampling,
    seed: int = HELDOUT_SEED,
    unsafe_no_isolation: bool = False,
) -> Evaluation:
    """Load a model (a directory or a hub id) and evaluate it on held-out problems of a task.

    Raises:
        UserError: if the model cannot be loaded, or the sandbox cannot isolate programs here.
    """
    model, tokenizer = load_model(location)
    engine = TransformersEngine(model, tokenizer)
    problems = task.problems("test", count, seed)
    with open_tools(task, unsafe_no_isolation=unsafe_no_isolation) as tools:
        return evaluate(engine, task, problems, sampling, tools=tools, seed=seed)


def load_model(location: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32 and its tokenizer.

    Raises:
        UserError: if either cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(location, dtype="float32")
    except (OSError, ValueError) as error:
        raise UserError(f"model {location} cannot be loaded: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer
