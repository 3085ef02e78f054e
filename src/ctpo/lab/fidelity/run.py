"""One measurement, from its models to `fidelity.json`. It is kept on disk as it goes, and continues from there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.evaluation.identity import judged_with, model_identity, sampled_with
from ctpo.evaluation.model import load_model
from ctpo.lab.fidelity.coefficients import coefficients, objective_of, on_policy, recipe_advantages
from ctpo.lab.fidelity.kept import Arrays, Kept, digest
from ctpo.lab.fidelity.measure import reference_cosine
from ctpo.lab.fidelity.reference import Reference
from ctpo.lab.fidelity.report import Design, Measured, Measurement
from ctpo.lab.fidelity.samples import Samples, fitting, sample
from ctpo.lab.fidelity.sketch import TOLERANCE, Check, Parameters, Scorer, check, dot
from ctpo.lab.theory.presets import read_objective
from ctpo.objectives import Objective, preset
from ctpo.objectives.reductions import Reduction
from ctpo.rollout import ToolRunner, TransformersEngine
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
from ctpo.version import __version__

RESULT: Final = "fidelity.json"
_ROWS_AT_ONCE: Final = 256
_CHECKED: Final = 8
_PARTS: Final = 4
"""Parts of the reference sample, from which the noise of its direction is known. Each costs one derivative."""
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
    reduction = preset(str(config.objective), **_mapping(config.objective_kwargs)).reduction
    chosen = {name: _with_reduction(name, reduction) for name in objectives}
    task = with_template_kwargs(get_task(recipe.task, recipe.tools or ()), config.chat_template_kwargs)
    check_ready(task)
    problems = all_train_problems(recipe, task, config)
    task = as_conversation(task, problems)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    policies = _Policies(behaviours, target, config)
    with open_tools(
        task,
        timeout_s=recipe.tool_timeout_s,
        memory_mb=recipe.tool_memory_mb,
        unsafe_no_isolation=recipe.unsafe_no_isolation,
    ) as tools:
        sampler = _Sampler(policies, task, recipe, config, problems, sizes, tools)
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
    scorer = Scorer(policies.target, temperature=sampler.sampling.temperature, vocabulary=policies.vocabulary)
    differentiated = _Differentiated(kept, scorer, reference, config, reduction, sizes, progress)
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
        "sizes": {**asdict(sizes), "lengths": list(sizes.lengths), "responses": len(samples)},
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
        "tokens": float(samples.sampled.double().mean()),
        "reward": float(samples.rewards.nansum(1).mean()),
    }


def _folder(policies: _Policies, behaviour: str) -> str:
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


class _Policies:
    """All models, checked to fit together. The behaviour policies are loaded when they sample."""

    def __init__(self, behaviours: Sequence[str], target: str, config: CTPOConfig) -> None:
        self._options = _mapping(config.model_init_kwargs)
        for name in ("dtype", "torch_dtype"):
            self._options.pop(name, None)  # derivatives need float32
        self.target, self.tokenizer = self._load(target)
        self._name = target
        self.vocabulary = int(self.target.get_output_embeddings().weight.shape[0])
        self.identities = {each: model_identity(model_location(each)) for each in (target, *behaviours)}
        own, seen = _digest(self.target), dict[str, str]()
        for each in behaviours:
            weights = _digest(self.load(each))
            if weights == own:
                raise UserError(
                    f"{each} and {target} hold the same weights, so nothing has drifted and every unclipped objective "
                    "is on-policy; take two checkpoints that differ"
                )
            if weights in seen:
                raise UserError(f"{seen[weights]} and {each} hold the same weights; name one of them")
            seen[weights] = each

    def load(self, name: str) -> Any:
        """A model, which has the tokens of the target."""
        if name == self._name:
            return self.target
        model, tokenizer = self._load(name)
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"{name} and {self._name} have different tokenizers; compare checkpoints of one model"
            )
        size = int(model.get_output_embeddings().weight.shape[0])
        if size != self.vocabulary:
            raise UserError(
                f"{name} and {self._name} have vocabularies of {size} and {self.vocabulary} tokens; compare "
                "checkpoints of one model"
            )
        return model

    def _load(self, name: str) -> Any:
        return load_model(model_location(name), **self._options)


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


class _Sampler:
    """Samples responses to the problems that fit, half of which are for the reference."""

    def __init__(
        self,
        policies: _Policies,
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


class _Differentiated:
    """Log-probs of the target and their derivatives, for samples of any policy."""

    def __init__(
        self,
        kept: Kept,
        scorer: Scorer,
        reference: tuple[Samples, list[str]],
        config: CTPOConfig,
        reduction: Reduction,
        sizes: Sizes,
        progress: Progress,
    ) -> None:
        self._kept, self._scorer, self._sizes, self._progress = kept, scorer, sizes, progress
        samples, digests = reference
        advantages = recipe_advantages(samples, config)
        k = coefficients(on_policy(reduction), samples.logps, samples, advantages, sizes.batch)
        group, problems = config.num_generations, len(samples) // config.num_generations
        count = min(_PARTS, problems)
        edges = [group * (problems * part // count) for part in range(count + 1)]
        self._rows = [slice(*pair) for pair in pairwise(edges)]
        self._compute = [
            partial(self._gradient, samples.rows(rows), k[rows, : int(samples.length[rows].max())])
            for rows in self._rows
        ]
        self._sources = [*digests, f"batch {sizes.batch}", f"parts {count}"]
        self._digests = []
        for part in range(count):
            progress("the on-policy gradient", part, count)
            self._digests.append(self._part(part)[1])
        gram = kept.arrays("gram", self._digests, self._gram)[0]["gram"]
        if not gram.sum() > 0:
            raise UserError(
                "the on-policy gradient is 0, because no group has different rewards; take other problems or more "
                "responses"
            )
        self._scale = math.sqrt(gram.sum())
        along = kept.arrays(f"along-{sizes.directions:03d}", self._digests, self._along)[0]["along"]
        self.reference = Reference(gram / gram.sum(), along, np.diff(edges).astype(float))

    def direction(self, place: int) -> Parameters:
        """Direction `place`: a part of the reference, or a random one."""
        parts = len(self._rows)
        if place >= parts:
            return self._scorer.direction(self._sizes.seed, place - parts + 1)
        arrays = self._part(place)[0]
        return {name: torch.from_numpy(each / np.float32(self._scale)) for name, each in arrays.items()}

    def measured(self, names: Mapping[str, tuple[Samples, list[str]]]) -> dict[str, Measured]:
        """Each sample, given with its digests, with its log-probs and derivatives."""
        logps = {}
        for place, (name, (samples, digests)) in enumerate(names.items()):
            self._progress("log-probs", place, len(names))
            arrays, _ = self._kept.arrays(f"{name}/logps", digests, partial(self._log_probs, samples))
            logps[name] = torch.from_numpy(arrays["logps"])
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        total = len(self._rows) + self._sizes.directions
        for place in range(total):
            self._progress("directions", place, total)
            of = self._digests[place : place + 1] or [f"random {place - len(self._rows) + 1}"]
            file = f"part-{place}" if place < len(self._rows) else f"random-{place - len(self._rows) + 1:03d}"
            held: list[Parameters] = []  # made once, and only if it is needed
            for name, (samples, digests) in names.items():
                compute = partial(self._derivative, samples, place, held)
                arrays, _ = self._kept.arrays(f"{name}/{file}", [*of, *digests], compute)
                columns[name].append(torch.from_numpy(arrays["derivatives"]))
        return {
            name: Measured(samples=samples, logps=logps[name], sketch=torch.stack(columns[name], 1))
            for name, (samples, _) in names.items()
        }

    def check(self, measured: Measured) -> Check:
        """The comparison of the sketch with autograd.

        Raises:
            UserError: if they differ.
        """
        few = measured.samples.rows(slice(0, _CHECKED))
        checked = check(
            self._scorer, few, self.direction, measured.sketch[: int(few.mask.sum())], self.reference
        )
        if not checked.error < TOLERANCE:
            raise UserError(
                f"the sketch differs from autograd by {100 * checked.error:.2g} per cent, and {100 * TOLERANCE:g} are "
                f"allowed; the model's derivatives are not reliable here; remove {self._kept.folder} to start anew"
            )
        return checked

    def _part(self, part: int) -> tuple[Arrays, str]:
        return self._kept.arrays(f"reference/gradient-{part}", self._sources, self._compute[part])

    def _gradient(self, samples: Samples, coefficient: Tensor) -> Arrays:
        return {name: each.numpy() for name, each in self._scorer.gradient(samples, coefficient).items()}

    def _gram(self) -> Arrays:
        count = len(self._rows)
        gram = np.zeros((count, count))
        for i in range(count):
            one = _tensors(self._part(i)[0])
            for j in range(i, count):
                gram[i, j] = gram[j, i] = dot(one, one if i == j else _tensors(self._part(j)[0]))
        return {"gram": gram}

    def _along(self) -> Arrays:
        count, sizes = len(self._rows), self._sizes
        along = np.zeros((sizes.directions, count))
        for part in range(count):
            own = self.direction(part)
            for j in range(sizes.directions):
                along[j, part] = dot(self.direction(count + j), own)
        return {"along": along}

    def _log_probs(self, samples: Samples) -> Arrays:
        return {"logps": self._scorer.log_probs(samples).numpy()}

    def _derivative(self, samples: Samples, place: int, held: list[Parameters]) -> Arrays:
        if not held:
            held.append(self.direction(place))
        return {"derivatives": self._scorer.derivative(samples, held[0]).numpy()}


def _tensors(arrays: Arrays) -> Parameters:
    return {name: torch.from_numpy(each) for name, each in arrays.items()}


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}:{weight.dtype}:{list(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
