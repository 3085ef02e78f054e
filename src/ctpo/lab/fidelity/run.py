"""One measurement, from two models to `fidelity.json`. It is kept on disk as it goes, and continues from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ctpo.errors import UserError
from ctpo.evaluation.model import load_model
from ctpo.lab.fidelity.coefficients import coefficients, objective_of, on_policy, recipe_advantages
from ctpo.lab.fidelity.measure import reference_cosine
from ctpo.lab.fidelity.report import Design, Measured, measure
from ctpo.lab.fidelity.samples import Samples, load_arrays, sample, save_arrays
from ctpo.lab.fidelity.sketch import TOLERANCE, Check, Parameters, Scorer, check, dot, unit
from ctpo.lab.theory.presets import read_objective
from ctpo.objectives import Objective, preset
from ctpo.objectives.reductions import Reduction
from ctpo.rollout import TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import open_tools
from ctpo.runs.atomic import write_json
from ctpo.tasks import Problem, Task, get_task
from ctpo.tasks.arithmetic import model_location
from ctpo.tasks.task import as_conversation, check_ready, with_template_kwargs
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.recipe import Recipe
from ctpo.training.config.settings import build
from ctpo.training.run.start import all_train_problems
from ctpo.training.sampling.reward import reward_functions

RESULT: Final = "fidelity.json"
_SETTINGS: Final = "settings.json"
_ROWS_AT_ONCE: Final = 256
_CHECKED: Final = 8
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is sampled, and how it is divided.

    Attributes:
        problems: problems that both policies answer. As many others give the reference direction.
        batch: responses of one batch, which is one call of an objective.
        blocks: disjoint blocks of problems, over which errors are estimated.
        directions: random directions of the sketch.
        lengths: edges of the bins of response length, in sampled tokens; empty for thirds of the responses.
        seed: of problems, responses, directions and null advantages.
    """

    problems: int = 128
    batch: int = 64
    blocks: int = 8
    directions: int = 16
    lengths: tuple[int, ...] = ()
    seed: int = 0

    def check(self, group: int) -> None:
        """Check that problems, batches and blocks fit.

        Raises:
            UserError: if they do not.
        """
        for name in ("problems", "batch", "directions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is too small; use at least 1")
        if self.blocks < 3:
            raise UserError(f"blocks={self.blocks} is too small for an error; use at least 3")
        if self.batch % group:
            raise UserError(
                f"batch={self.batch} is no multiple of num_generations={group}; "
                f"use {max(1, self.batch // group) * group}"
            )
        unit = self.blocks * self.batch // group
        if self.problems % unit:
            raise UserError(
                f"problems={self.problems} do not fill {self.blocks} blocks of whole batches; use a multiple of {unit}"
            )
        if list(self.lengths) != sorted(set(self.lengths)) or (self.lengths and self.lengths[0] < 1):
            raise UserError(f"lengths={list(self.lengths)} are no rising edges; write for example 100,300")


def fidelity(
    behaviour: str,
    target: str,
    keys: Mapping[str, Any],
    objectives: Sequence[str],
    *,
    output: Path,
    sizes: Sizes | None = None,
    progress: Progress = lambda stage, done, of: None,
) -> dict[str, Any]:
    """How every objective's gradient on responses of `behaviour` compares with the on-policy gradient of `target`.

    docs/fidelity.md defines the figures. What is done is stored in `output`, and the same call goes on from there.

    Args:
        behaviour, target: directories of models, names of shipped ones, or hub ids.
        keys: of the recipe: task, rewards, advantages, lengths and temperature.
        objectives: presets with their knobs, such as "ctpo?log_high=0.4".
        output: a directory of this measurement alone.
        sizes: how much is sampled.
        progress: called with a stage, and how much of it is done.

    Returns:
        The content of `fidelity.json`.

    Raises:
        UserError: if an argument is wrong, the two models do not fit, or the sketch fails its check.

    Example:
        fidelity("run/checkpoint-64", "run/model", embedded_recipe(), ["ctpo", "grpo"], output=Path("pair"))
    """
    sizes = sizes or Sizes()
    recipe, config = build({"output_dir": "unnamed", **keys})
    sizes.check(config.num_generations)
    reduction = preset(str(config.objective), **_mapping(config.objective_kwargs)).reduction
    chosen = {name: _with_reduction(name, reduction) for name in objectives}
    task = with_template_kwargs(get_task(recipe.task, recipe.tools or ()), config.chat_template_kwargs)
    check_ready(task)
    problems = _problems(recipe, task, config, sizes)
    task = as_conversation(task, problems)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    pair = _Pair(behaviour, target, config)
    settings = {
        "weights": pair.digests,
        "recipe": {name: value for name, value in keys.items() if name not in _NOT_DECIDING},
        "problems": hashlib.sha256(repr([(p.prompt, p.answer) for p in problems]).encode()).hexdigest(),
        "sizes": {
            name: value for name, value in asdict(sizes).items() if name not in ("batch", "blocks", "lengths")
        },
    }
    work = _Work(output, settings, progress)
    off, reference, on = _sampled(work, pair, task, recipe, config, problems, sizes)
    scorer = Scorer(pair.target, temperature=_temperature(config), vocabulary=pair.vocabulary)
    measured_off, measured_on, along, half, checked, gap = _sketched(
        work, scorer, off, reference, on, config, reduction, sizes
    )
    design = Design(
        group=config.num_generations,
        batch=sizes.batch,
        blocks=sizes.blocks,
        reduction=reduction,
        rho=reference_cosine(half),
        along=along,
        lengths=sizes.lengths,
        seed=sizes.seed,
    )
    figures = measure(
        measured_off, measured_on, chosen, config, design, lambda done, of: progress("objectives", done, of)
    )
    result = {
        "behaviour": behaviour,
        "target": target,
        "task": recipe.task,
        "sizes": {**asdict(sizes), "lengths": list(sizes.lengths), "responses": len(off)},
        "group": config.num_generations,
        "reduction": reduction.name,
        "advantages": config.advantages,
        "tokens": float(off.sampled.double().mean()),
        "rewards": {
            name: float(each.rewards.nansum(1).mean()) for name, each in (("behaviour", off), ("target", on))
        },
        "reference": {"half_cosine": half, "cosine": design.rho},
        "sketch": {"error": checked.error, "norm": checked.norm, "engine_gap": gap},
        **figures,
    }
    write_json(output / RESULT, result)
    return result


_NOT_DECIDING: Final = {
    "output_dir",
    "threads",
    "rollout_batches",
    "max_steps",
    "save_steps",
    "save_total_limit",
}


class _Pair:
    """Both models, checked to fit together."""

    def __init__(self, behaviour: str, target: str, config: CTPOConfig) -> None:
        options = _mapping(config.model_init_kwargs)
        for name in ("dtype", "torch_dtype"):
            options.pop(name, None)  # derivatives need float32
        self.behaviour, self.tokenizer = load_model(model_location(behaviour), **options)
        self.target, other = load_model(model_location(target), **options)
        if self.tokenizer.get_vocab() != other.get_vocab():
            raise UserError(
                f"{behaviour} and {target} have different tokenizers; compare checkpoints of one model"
            )
        sizes = [model.get_output_embeddings().weight.shape[0] for model in (self.behaviour, self.target)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{behaviour} and {target} have vocabularies of {sizes[0]} and {sizes[1]} tokens; compare checkpoints "
                "of one model"
            )
        self.vocabulary = int(sizes[0])
        self.digests = [_digest(self.behaviour), _digest(self.target)]
        if self.digests[0] == self.digests[1]:
            raise UserError(
                f"{behaviour} and {target} hold the same weights, so nothing has drifted and every unclipped objective "
                "is on-policy; take two checkpoints that differ"
            )


class _Work:
    """The directory of a measurement: what is in it is not computed again."""

    def __init__(self, output: Path, settings: Mapping[str, Any], progress: Progress) -> None:
        self.output, self.progress = output, progress
        plain = json.loads(json.dumps(settings, default=str))
        path = output / _SETTINGS
        if path.is_file():
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                held = None
            if held != plain:
                raise UserError(
                    f"{output} holds another measurement (other weights, recipe or sizes); choose another --output"
                )
        elif output.exists() and (not output.is_dir() or any(p.name != ".lock" for p in output.iterdir())):
            raise UserError(f"{output} is in use for something else; choose another --output")
        else:
            try:
                write_json(path, plain)
            except OSError as error:
                raise UserError(
                    f"{output} cannot be written ({error.strerror}); choose another --output"
                ) from None

    def arrays(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The arrays of that name, computed if they are not there yet."""
        path = self.output / f"{name}.npz"
        if not path.is_file():
            save_arrays(path, compute())
        return load_arrays(path)


def _mapping(value: Any) -> dict[str, Any]:
    """A copy of a setting that is a mapping by now, or empty."""
    return dict(value) if isinstance(value, Mapping) else {}


def _with_reduction(spec: str, reduction: Reduction) -> Objective:
    """The objective of a specification, with the common reduction unless it names one itself."""
    objective = read_objective(spec)
    return objective if "reduction=" in spec else objective_of(objective, reduction)


def _temperature(config: CTPOConfig) -> float:
    if not config.temperature > 0:
        raise UserError(f"temperature={config.temperature} samples nothing; use more than 0")
    return float(config.temperature)


def _problems(recipe: Recipe, task: Task, config: CTPOConfig, sizes: Sizes) -> list[Problem]:
    """The problems that both policies answer, and then those of the reference."""
    needed = 2 * sizes.problems
    problems = all_train_problems(recipe, task, config)
    if len(problems) < needed:
        raise UserError(
            f"task {recipe.task!r} gives {len(problems)} problems, and --problems {sizes.problems} needs twice as "
            f"many: half of them for the reference; give at most --problems {len(problems) // 2}"
            if problems
            else f"task {recipe.task!r} has no problems to sample responses to; take another task or dataset"
        )
    return problems[:needed]


def _sampled(
    work: _Work,
    pair: _Pair,
    task: Task,
    recipe: Recipe,
    config: CTPOConfig,
    problems: Sequence[Problem],
    sizes: Sizes,
) -> list[Samples]:
    """The responses of the behaviour policy, those of the reference, and those of on-policy sampling."""
    rewards = reward_functions(task, recipe, config, lambda verdicts: None)
    sampling = Sampling(
        max_new_tokens=int(config.max_completion_length or 0),
        temperature=_temperature(config),
        top_k=config.top_k or 0,
        top_p=config.top_p,
    )
    group, half = config.num_generations, len(problems) // 2
    size = max(1, (recipe.rollout_batch_size or _ROWS_AT_ONCE) // group)
    plan = [("behaviour", pair.behaviour, 0), ("reference", pair.target, half), ("target", pair.target, 0)]
    chunks = -(-half // size)
    policies = []
    with open_tools(
        task,
        timeout_s=recipe.tool_timeout_s,
        memory_mb=recipe.tool_memory_mb,
        unsafe_no_isolation=recipe.unsafe_no_isolation,
    ) as tools:
        for stream, (name, model, start) in enumerate(plan):
            engine = TransformersEngine(model, pair.tokenizer)
            parts = []
            for chunk in range(chunks):
                work.progress("responses", stream * chunks + chunk, len(plan) * chunks)
                path = work.output / f"responses-{name}-{chunk:03d}.npz"
                first, last = start + chunk * size, min(start + (chunk + 1) * size, start + half)
                if not path.is_file():
                    sample(
                        engine,
                        task,
                        problems[first:last],
                        sampling,
                        rewards,
                        group=group,
                        seed=sizes.seed,
                        stream=stream,
                        first=first,
                        tools=tools,
                    ).save(path)
                parts.append(Samples.load(path))
            policies.append(Samples.joined(parts))
    return policies


def _sketched(
    work: _Work,
    scorer: Scorer,
    off: Samples,
    reference: Samples,
    on: Samples,
    config: CTPOConfig,
    reduction: Reduction,
    sizes: Sizes,
) -> tuple[Measured, Measured, Any, float, Check, float]:
    """Both samples with their sketches, v_j·u, the split-half cosine, the check, and the engine's gap in log-probs."""
    work.progress("log-probs", 0, 3)
    logps = {}
    for name, each in (("behaviour", off), ("target", on)):
        held = work.arrays(f"logps-{name}", partial(_log_probs, scorer, each))
        logps[name] = torch.from_numpy(held["logps"])
    gap = float((logps["target"] - on.logps).abs().max())

    def halves() -> dict[str, Any]:
        advantages = recipe_advantages(reference, config)
        k = coefficients(on_policy(reduction), reference.logps, reference, advantages, sizes.batch)
        middle = len(reference) // 2
        parts = [
            scorer.gradient(reference.rows(part), k[part, : int(reference.length[part].max())])
            for part in (slice(0, middle), slice(middle, None))
        ]
        total = unit({name: parts[0][name] + parts[1][name] for name in parts[0]})
        norms = [dot(part, part) for part in parts]
        cosine = dot(*parts) / (norms[0] * norms[1]) ** 0.5 if min(norms) > 0 else 0.0
        return {"cosine": np.array(cosine), **{f"u.{name}": each.numpy() for name, each in total.items()}}

    work.progress("log-probs", 2, 3)
    held = work.arrays("reference", halves)
    u: Parameters = {name: torch.from_numpy(held[f"u.{name}"]) for name in scorer.parameters}

    def direction(place: int) -> Parameters:
        return u if place == 0 else scorer.direction(sizes.seed, place)

    first = slice(0, _CHECKED)
    columns: list[dict[str, Any]] = []
    for place in range(sizes.directions + 1):
        work.progress("directions", place, sizes.directions + 1)

        def derivatives(place: int = place) -> dict[str, Any]:
            v = direction(place)
            return {
                "along": np.array(dot(u, v)),
                "behaviour": scorer.derivative(off, v).numpy(),
                "target": scorer.derivative(on, v).numpy(),
            }

        columns.append(work.arrays(f"direction-{place:03d}", derivatives))
    sketches = {
        name: torch.stack([torch.from_numpy(each[name]) for each in columns], 1)
        for name in ("behaviour", "target")
    }
    along = np.array([float(each["along"]) for each in columns[1:]])
    few = off.rows(first)
    checked = check(scorer, few, direction, sketches["behaviour"][: int(few.mask.sum())], along)
    if not checked.error < TOLERANCE:
        raise UserError(
            f"the sketch differs from autograd by {100 * checked.error:.2g} per cent, and "
            f"{100 * TOLERANCE:g} are allowed; "
            f"the model's derivatives are not reliable here; remove {work.output} to start anew"
        )
    return (
        Measured(samples=off, logps=logps["behaviour"], sketch=sketches["behaviour"]),
        Measured(samples=on, logps=logps["target"], sketch=sketches["target"]),
        along,
        float(held["cosine"]),
        checked,
        gap,
    )


def _log_probs(scorer: Scorer, samples: Samples) -> dict[str, Any]:
    return {"logps": scorer.log_probs(samples).numpy()}


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}:{weight.dtype}:{list(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
