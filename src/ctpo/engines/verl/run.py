"""One run of a recipe by verl: from the recipe to the saved model and the records."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from ctpo.engines.choice import EngineChoice, engine_keys
from ctpo.engines.verl.files import write_agent, write_problems
from ctpo.engines.verl.place import Orders
from ctpo.engines.verl.translation import VERSION, Site, batches_of, environment, settings_of, translate
from ctpo.errors import UserError
from ctpo.evaluation.model import load_tokenizer
from ctpo.rollout.chat import encode_prompt
from ctpo.runs.directory import RunDirectory
from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import model_location
from ctpo.tasks.task import as_conversation, check_ready, with_template_kwargs
from ctpo.training.config.recipe import Recipe
from ctpo.training.config.settings import build, check, resolved
from ctpo.training.records.environment import describe_environment
from ctpo.training.records.events import Listener, Silent
from ctpo.training.records.summary import summarise
from ctpo.training.run.start import heldout_problems, prepare, settle_length, train_problems
from ctpo.training.sampling.masking import check_void_turns
from ctpo.training.sampling.prompts import leave_out_long

_FOLDER: Final = "verl"
"""The folder of a run in which verl's checkpoints and the files for verl are."""
_NEEDED: Final = ("verl", "ray", "transfer_queue", "hydra")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a run ended."""

    run: RunDirectory
    summary: dict[str, Any]


def check_installed() -> None:
    """Check that verl and Ray are here.

    Raises:
        UserError: if one of them is not, with what to install.
    """
    for module in _NEEDED:
        if find_spec(module) is None:
            raise UserError(
                f"engine=verl needs verl {VERSION} and Ray, and the module {module} is not installed; install them as "
                "docs/how-to/adapters.md says"
            )


def train(
    keys: Mapping[str, Any],
    choice: EngineChoice,
    *,
    listener: Listener | None = None,
    started: float | None = None,
) -> Finished:
    """Train as a recipe describes, with verl on Ray.

    Args:
        keys: of the recipe, without those of the engine.
        choice: the engine, and what the recipe says to it directly.
        listener: is notified as the run goes on.
        started: the reading of `time.perf_counter` from which the run's time counts. None counts from this call.

    Raises:
        UserError: if a key has no counterpart in verl, or something is missing.
    """
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    check_installed()
    start = prepare(keys, None)
    recipe, given = check(start.keys)
    _, config = build(start.keys)
    task = with_template_kwargs(get_task(recipe.task, recipe.tools or ()), config.chat_template_kwargs)
    check_void_turns(task, recipe.mask_void_turns)
    check_ready(task)
    everything, heldout = train_problems(recipe, task, config), heldout_problems(recipe, task)
    task = as_conversation(task, [*everything, *heldout])
    model = model_location(recipe.model)
    tokenizer, context = load_tokenizer(model)
    problems = leave_out_long(everything, recipe, config, task, tokenizer, context)
    settle_length(config, len(problems))
    start.run.check_free()
    folder = start.run.path / _FOLDER
    site = Site(
        model=model,
        chat_template=bool(tokenizer.chat_template),
        train_file=(folder / "train.parquet").absolute(),
        test_file=(folder / "test.parquet").absolute(),
        agent_file=(folder / "agent.yaml").absolute(),
        checkpoints=folder.absolute(),
        train_problems=len(problems),
        test_problems=len(heldout),
        prompt_tokens=_longest(tokenizer, task, [*problems, *heldout], recipe, context, config),
        ray_address=choice.ray_address,
        **_processes(choice),
    )
    _set_environment(site)
    from ctpo.engines.verl.configuration import configuration

    translated = configuration(translate(recipe, given, site, choice.overrides))
    start.run.open({**resolved(start.keys), **engine_keys(choice)}, describe_environment(1))
    write_problems(site.train_file, problems, task.name)
    write_problems(site.test_file, heldout, task.name)
    write_agent(site.agent_file, _orders(recipe, config, task))
    listener.stage("starting Ray and verl")
    updates = batches_of(settings_of(given), site.processes * site.machines).updates
    _run(translated, start.run, updates, time.perf_counter() - started)
    listener.stage("saving the model")
    from ctpo.engines.verl.export import export

    export(folder, start.run.model)
    length = int(translated.trainer.total_training_steps)
    summary = summarise(
        config,
        start.run,
        steps=length * updates,
        seconds=time.perf_counter() - started,
        model=start.run.model.name,
        engine=f"verl {VERSION}",
        prompts_left_out=len(everything) - len(problems),
    )
    start.run.write_summary(summary)
    return Finished(run=start.run, summary=summary)


def _run(config: Any, run: RunDirectory, updates: int, seconds: float) -> None:
    """Run verl's trainer on Ray, started here or joined."""
    import ray
    from omegaconf import open_dict
    from verl.trainer.main_ppo import run_ppo

    from ctpo.engines.verl.runner import RecordingRunner

    with open_dict(config):
        config.ctpo = {"run": str(run.path.absolute()), "updates": updates, "seconds": seconds}
    try:
        run_ppo(config, task_runner_class=ray.remote(num_cpus=0)(RecordingRunner))
    finally:
        ray.shutdown()


def _set_environment(site: Site) -> None:
    """Set what verl reads from the environment, for this process and those of a Ray that starts here."""
    for name, value in environment(site.accelerator).items():
        os.environ.setdefault(name, value)


def _processes(choice: EngineChoice) -> dict[str, Any]:
    """How many processes train, on how many machines, and whether there are accelerators."""
    import torch

    accelerator = torch.accelerator.is_available()
    here = torch.accelerator.device_count() if accelerator else 1
    return {
        "accelerator": accelerator,
        "processes": int(choice.overrides.get("trainer.n_gpus_per_node", here)),
        "machines": int(choice.overrides.get("trainer.nnodes", 1)),
    }


def _orders(recipe: Recipe, config: Any, task: Any) -> Orders:
    return Orders(
        task=recipe.task,
        tools=recipe.tools,
        chat=task.chat,
        template_kwargs=config.chat_template_kwargs,
        timeout_s=recipe.tool_timeout_s,
        memory_mb=recipe.tool_memory_mb,
        unsafe_no_isolation=recipe.unsafe_no_isolation,
        void_turns=recipe.mask_void_turns,
        mask_truncated=config.mask_truncated_completions,
        overlong_buffer=recipe.overlong_buffer,
        max_tokens=config.max_completion_length,
    )


def _longest(
    tokenizer: Any, task: Any, problems: Any, recipe: Recipe, context: int | None, config: Any
) -> int:
    """How many tokens the longest prompt has; with an environment, which writes the prompts, how many it may have."""
    if recipe.max_prompt_length is not None:
        return recipe.max_prompt_length
    if task.environment is not None and context is not None:
        return int(context - config.max_completion_length)
    return max(len(encode_prompt(tokenizer, task, problem.prompt)) for problem in problems)
