"""One run of a recipe by verl: from the recipe to the saved model and the records."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ctpo.engines.choice import EngineChoice, engine_keys, split_engine
from ctpo.engines.verl.batches import Batches, batches_of, settings_of
from ctpo.engines.verl.console import followed, kept_aside
from ctpo.engines.verl.export import CHECKPOINT, export, last_checkpoint, step_of
from ctpo.engines.verl.files import write_agent, write_problems
from ctpo.engines.verl.place import Orders
from ctpo.engines.verl.site import VERSION, Site, environment
from ctpo.engines.verl.translation import translate
from ctpo.errors import UserError
from ctpo.evaluation.model import load_tokenizer
from ctpo.rollout.chat import encode_prompt
from ctpo.runs.command import resume_words
from ctpo.runs.directory import RunDirectory
from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import model_location
from ctpo.tasks.task import as_conversation, check_ready, with_template_kwargs
from ctpo.training.config.recipe import Recipe
from ctpo.training.config.settings import build, resolved
from ctpo.training.config.settings import check as check_keys
from ctpo.training.records.environment import describe_environment
from ctpo.training.records.events import Listener, RunPlan, Silent
from ctpo.training.records.summary import summarise
from ctpo.training.run.start import heldout_problems, prepare, train_problems
from ctpo.training.sampling.masking import check_void_turns
from ctpo.training.sampling.prompts import leave_out_long

FOLDER: Final = "verl"
"""The folder of a run in which verl's checkpoints, the files for verl and what it prints are."""
LOG: Final = "log.txt"
_NOTHING: Final = -1
"""The update up to which records are kept, if none is."""
_CHOSEN: Final = ("ray_address", "trainer_mode", "rollout_processes", "max_staleness")
"""What an `EngineChoice` and a `Site` both have."""
_NEEDED: Final = ("verl", "ray", "transfer_queue", "hydra")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a run ended."""

    run: RunDirectory
    summary: dict[str, Any] | None
    """The content of `summary.json`; None if the run was interrupted."""

    @property
    def finished(self) -> bool:
        """False if the run was interrupted."""
        return self.summary is not None


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


def check(keys: Mapping[str, Any]) -> None:
    """Check what can be checked before a run is begun: that all keys are right, and verl has a counterpart for each.

    Args:
        keys: of the recipe and of the engine.

    Raises:
        UserError: for the first that is wrong or has no counterpart, or if verl is not installed.
    """
    choice, own = split_engine(keys)
    recipe, given = check_keys(own)
    build(own)
    unknown: dict[str, Any] = {
        **dict.fromkeys(("train_file", "test_file", "agent_file", "checkpoints"), Path()),
        **dict.fromkeys(("train_problems", "test_problems", "prompt_tokens"), 1),
    }
    site = Site(model=recipe.model, **unknown, **_choice(choice))
    translated = translate(recipe, given, site, choice.overrides)
    check_installed()
    if choice.overrides:  # what we translate ourselves is known to fit
        _configuration(translated, site)


def train(
    keys: Mapping[str, Any],
    *,
    listener: Listener | None = None,
    resume: Path | None = None,
    started: float | None = None,
    trust: bool = False,
) -> Finished:
    """Train as a recipe describes, with verl on Ray.

    Args:
        keys: of the recipe and of the engine. With `resume`, keys that change those of the run.
        listener: is notified as the run goes on.
        resume: the directory of a run to continue from verl's last checkpoint.
        started: the reading of `time.perf_counter` from which the run's time counts. None counts from this call.
        trust: with `resume`, load verl's checkpoints, which can hold code, and obey what the directory names.

    Raises:
        UserError: if a key has no counterpart in verl, something is missing, or verl ends with an error.
    """
    started = time.perf_counter() if started is None else started
    listener = listener or Silent()
    check_installed()
    start = prepare(keys, resume, trust=trust)
    choice, own = split_engine(start.keys)
    if start.named is not None:
        raise UserError(f"{start.named} is no checkpoint of verl's; give the run's directory to --resume")
    recipe, given = check_keys(own)
    _, config = build(own)
    task = with_template_kwargs(get_task(recipe.task, recipe.tools or ()), config.chat_template_kwargs)
    check_void_turns(task, recipe.mask_void_turns)
    check_ready(task)
    everything, heldout = train_problems(recipe, task, config), heldout_problems(recipe, task)
    task = as_conversation(task, [*everything, *heldout])
    model = model_location(recipe.model)
    tokenizer, context = load_tokenizer(model)
    problems = leave_out_long(everything, recipe, config, task, tokenizer, context)
    run, folder = start.run, start.run.path / FOLDER
    records = run.records() if start.resumes else []
    checkpoint = last_checkpoint(folder, max((record["batch"] for record in records), default=0))
    if not start.resumes:
        run.check_free()
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
        resume_from=None if checkpoint is None else checkpoint.absolute(),
        **_choice(choice),
    )
    translated = _configuration(translate(recipe, given, site, choice.overrides), site)
    length, batches = int(translated.trainer.total_training_steps), _batches(given, site)
    updates = batches.updates
    done = 0 if checkpoint is None else step_of(checkpoint)
    if done >= length and run.summary.is_file():
        raise UserError(
            f"{run.path} is complete ({done} rollout batches, and {length} were asked for); to train it further, give "
            "a larger rollout_batches"
        )
    run.open({**resolved(own), **engine_keys(choice)}, describe_environment(site.processes * site.machines))
    write_problems(site.train_file, problems, task.name)
    write_problems(site.test_file, heldout, task.name, heldout=True)
    write_agent(site.agent_file, _orders(recipe, config, task))
    if start.resumes:
        listener.notice(f"continuing from {checkpoint.name if checkpoint else 'the beginning'}")
        records = run.rewind(done * updates if checkpoint else _NOTHING, updates)
    before = records[-1]["seconds"] if records else 0.0
    listener.started(
        RunPlan(
            output=run.path,
            task=recipe.task,
            model=recipe.model,
            objective=str(config.objective),
            seed=config.seed,
            rollout_batches=length,
            updates_per_batch=updates,
            responses_per_batch=batches.prompts * config.num_generations,
            parameters=_parameters(model),
            start_batch=done,
            left_out=len(everything) - len(problems),
        )
    )
    if done < length:
        listener.stage(f"starting Ray and verl, whose own lines go to {folder / LOG}")
        seconds = before + time.perf_counter() - started
        ours = {"updates": updates, "seconds": seconds, "transcripts": recipe.transcripts}
        try:
            with kept_aside(folder / LOG), followed(run, folder / LOG, listener):
                _run(translated, run, ours)
        except KeyboardInterrupt:
            return Finished(run=run, summary=None)
    listener.stage("saving the model")
    export(folder / f"{CHECKPOINT}{length}", run.model)
    summary = summarise(
        config,
        run,
        steps=length * updates,
        seconds=before + time.perf_counter() - started,
        rollout_batches=length,
        model=run.model.name,
        engine=f"verl {VERSION}",
        prompts_left_out=len(everything) - len(problems),
    )
    run.write_summary(summary)
    return Finished(run=run, summary=summary)


def _configuration(keys: Mapping[str, Any], site: Site) -> Any:
    """verl's configuration with these keys, checked. What verl says while it is imported helps nobody."""
    _set_environment(site)
    with kept_aside(Path(os.devnull)):
        from ctpo.engines.verl.configuration import configuration

        return configuration(keys)


def _batches(given: Mapping[str, Any], site: Site) -> Batches:
    return batches_of(settings_of(given), site.processes * site.machines)


def _parameters(model: str) -> int:
    """How many parameters a model has, found without loading its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).num_parameters())


def _run(config: Any, run: RunDirectory, ours: Mapping[str, Any]) -> None:
    """Run verl's trainer on Ray, started here or joined.

    Args:
        config: of verl.
        run: the directory of the records.
        ours: what the records need to know besides.

    Raises:
        UserError: if verl ends with an error. Its own lines are in the file by then.
    """
    import ray
    from omegaconf import open_dict
    from verl.trainer.main_ppo import run_ppo

    from ctpo.engines.verl.runner import RecordingRunner

    with open_dict(config):
        config.ctpo = {"run": str(run.path.absolute()), **ours}
    try:
        run_ppo(config, task_runner_class=ray.remote(num_cpus=0)(RecordingRunner))
    except ray.exceptions.RayError as error:
        print(error, flush=True)  # to the file: the place in verl's code
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise UserError(
            f"verl ended with an error ({last}), which {run.path / FOLDER / LOG} describes; after mending it, continue "
            f"with `{resume_words(run.path)} --trust`"
        ) from None
    finally:
        ray.shutdown()


def _set_environment(site: Site) -> None:
    """Set what verl reads from the environment, for this process and those of a Ray that starts here."""
    for name, value in environment(site.accelerator).items():
        os.environ.setdefault(name, value)


def _choice(choice: EngineChoice) -> dict[str, Any]:
    """What the user chose, how many processes train on how many machines, and whether there are accelerators."""
    import torch

    accelerator = torch.accelerator.is_available()
    here = torch.accelerator.device_count() if accelerator else 1
    return {
        **{name: getattr(choice, name) for name in _CHOSEN},
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
