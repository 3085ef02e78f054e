"""One measurement, from its models to `fidelity.json`. It is kept on disk as it goes, and continues from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from ctpo.errors import UserError
from ctpo.evaluation.identity import judged_with, sampled_with
from ctpo.lab.fidelity.coefficients import objective_of
from ctpo.lab.fidelity.derivatives import Derivatives
from ctpo.lab.fidelity.kept import Kept, digest
from ctpo.lab.fidelity.measure import reference_cosine
from ctpo.lab.fidelity.policies import Policies, as_mapping
from ctpo.lab.fidelity.report import Design, Measurement
from ctpo.lab.fidelity.sampler import Sampler
from ctpo.lab.fidelity.samples import Samples
from ctpo.lab.fidelity.sizes import Progress, Sizes
from ctpo.lab.fidelity.sketch import Scorer
from ctpo.lab.theory.presets import read_objective
from ctpo.objectives import Objective, preset
from ctpo.objectives.reductions import Reduction
from ctpo.rollout.tools import open_tools
from ctpo.runs.atomic import write_json
from ctpo.tasks import get_task
from ctpo.tasks.task import as_conversation, check_ready, with_template_kwargs
from ctpo.training.config.settings import build
from ctpo.training.run.start import all_train_problems
from ctpo.training.sampling.masking import check_void_turns
from ctpo.version import __version__

RESULT: Final = "fidelity.json"


def fidelity(
    behaviours: Sequence[str],
    target: str,
    keys: Mapping[str, Any],
    objectives: Sequence[str],
    *,
    output: Path,
    sizes: Sizes | None = None,
    progress: Progress = lambda stage, done, of: None,
) -> dict[str, Any]:
    """How every objective's gradient on responses of `behaviours` compares with the on-policy gradient of `target`.

    docs/how-to/fidelity.md defines the figures. What is done is stored in `output`, and the same call goes on from
    there. Another behaviour policy can be added later; what belongs to the target is sampled and differentiated once.

    Args:
        behaviours: one or more models that sample: directories, names of shipped ones, or hub ids.
        target: the model that is updated.
        keys: of the recipe: task, rewards, advantages, lengths and temperature.
        objectives: presets with their knobs, such as "ctpo?log_high=0.4".
        output: a directory of this measurement alone.
        sizes: how much is sampled.
        progress: called with a stage, and how much of it is done.

    Returns:
        The content of `fidelity.json`, with one entry in `pairs` for each behaviour policy.

    Raises:
        UserError: if an argument is wrong, the models do not fit, or the sketch fails its check.

    Example:
        fidelity(["run/checkpoint-64"], "run/model", embedded_recipe(), ["ctpo", "grpo"], output=Path("pair"))
    """
    sizes = sizes or Sizes()
    recipe, config = build({"output_dir": "unnamed", **keys})
    sizes.check(config.num_generations)
    reduction = preset(str(config.objective), **as_mapping(config.objective_kwargs)).reduction
    chosen = {name: _with_reduction(name, reduction) for name in objectives}
    task = with_template_kwargs(get_task(recipe.task, recipe.tools or ()), config.chat_template_kwargs)
    check_ready(task)
    problems = all_train_problems(recipe, task, config)
    task = as_conversation(task, problems)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    check_void_turns(task, recipe.mask_void_turns)
    policies = Policies(behaviours, target, config)
    with open_tools(
        task,
        timeout_s=recipe.tool_timeout_s,
        memory_mb=recipe.tool_memory_mb,
        unsafe_no_isolation=recipe.unsafe_no_isolation,
    ) as tools:
        sampler = Sampler(policies, task, recipe, config, problems, sizes, tools)
        settings = {
            "target": policies.identities[target],
            "recipe": {name: value for name, value in keys.items() if name not in _NOT_DECIDING},
            "task": [sampled_with(task, sampler.sampling, {}), judged_with(task)],
            "problems": digest([[p.prompt, p.answer] for p in sampler.problems]),
            "sizes": {"problems": sizes.problems, "seed": sizes.seed},
            "version of ctpo": __version__,
        }
        kept = Kept(output, settings)
        reference = sampler.responses(kept, "reference", target, 1, sizes.problems, progress)
        on = sampler.responses(kept, "target", target, 2, 0, progress)
        offs = {
            each: sampler.responses(kept, _folder(policies, each), each, 0, 0, progress)
            for each in behaviours
        }
    for name, (samples, _) in {"target": on, **offs}.items():
        if not samples.mask.any():
            raise UserError(
                f"every response of {name} is left out of the loss; drop mask_truncated_completions and "
                "mask_void_turns, or raise max_completion_length"
            )
    scorer = Scorer(policies.target, temperature=sampler.sampling.temperature, vocabulary=policies.vocabulary)
    differentiated = Derivatives(kept, scorer, reference, config, reduction, sizes, progress)
    names = {"target": on, **{_folder(policies, each): off for each, off in offs.items()}}
    measured = differentiated.measured(names)
    samples = measured["target"].samples
    checked = differentiated.check(measured["target"])
    gap = float((measured["target"].logps - samples.logps).abs().max())
    design = Design(
        group=config.num_generations,
        batch=sizes.batch,
        blocks=sizes.blocks,
        reduction=reduction,
        reference=differentiated.reference,
        lengths=sizes.lengths,
        seed=sizes.seed,
    )
    measurement = Measurement(measured["target"], chosen, config, design)
    pairs = [
        {
            "behaviour": each,
            **_sample_figures(measured[name].samples),
            **measurement.pair(measured[name], lambda done, of: progress("objectives", done, of)),
        }
        for each in behaviours
        for name in [_folder(policies, each)]
    ]
    result = {
        "target": target,
        "task": recipe.task,
        "sizes": {
            **asdict(sizes),
            "directions": differentiated.directions,
            "lengths": list(sizes.lengths),
            "responses": len(samples),
        },
        "left_out": sampler.left_out,
        "group": config.num_generations,
        "reduction": reduction.name,
        "advantages": config.advantages,
        **_sample_figures(samples),
        "reference": {"parts": len(design.reference), "cosine": reference_cosine(design.reference).as_json},
        "sketch": {"error": checked.error, "norm": checked.norm, "engine_gap": gap},
        **measurement.as_json,
        "pairs": pairs,
    }
    write_json(output / RESULT, result)
    return result


def _sample_figures(samples: Samples) -> dict[str, float]:
    return {
        "tokens": float(samples.sampled[samples.in_loss].double().mean()),
        "reward": float(samples.rewards.nansum(1).mean()),
    }


def _folder(policies: Policies, behaviour: str) -> str:
    """Where what belongs to a behaviour policy is kept."""
    return f"behaviour-{digest(policies.identities[behaviour])[:12]}"


_NOT_DECIDING: Final = {
    "output_dir",
    "threads",
    "rollout_batches",
    "max_steps",
    "save_steps",
    "save_total_limit",
    "model",
}


def _with_reduction(spec: str, reduction: Reduction) -> Objective:
    """The objective of a specification, with the common reduction unless it names one itself."""
    objective = read_objective(spec)
    return objective if "reduction=" in spec else objective_of(objective, reduction)
