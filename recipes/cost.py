"""What the larger recipes cost on GPUs: an estimate, from counts and a few assumed efficiencies.

python recipes/cost.py paper [mean response, tokens]    # paper-qwen3-4b and -14b on eight H100
python recipes/cost.py gsm8k [mean response, tokens]    # gsm8k-qwen on one H100
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

# Of an H100 SXM: dense bfloat16 rate, memory bandwidth and memory.
FLOPS, BANDWIDTH, MEMORY = 989e12, 3.35e12, 80e9
# Assumed: share of the bandwidth a decoder reaches, what the last responses of a batch add to its rollout.
DECODING, TAIL = 0.70, 1.3


@dataclass(frozen=True)
class Model:
    """Counts from the model's configuration."""

    name: str
    parameters: float
    layers: int
    query_width: int
    """Attention heads times head size."""
    kv_width: int
    tensor_parallel: int = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe gives, and what is assumed of its tasks and its GPUs."""

    models: tuple[Model, ...]
    gpus: int
    steps: int
    responses: int
    """Of a rollout batch."""
    evaluations: int
    evaluated: int
    """Responses of an evaluation."""
    prompt: int
    response: float
    rest_s: float
    """Assumed: seconds per step for weights in the rollout engine, tools and judging."""
    mfu: float
    """Assumed: share of the FLOPs that the trainer reaches."""
    vllm_memory: float
    """Share of the memory that the rollout engine may take."""
    recomputed: bool = True
    """Whether activations are computed again in the backward pass."""
    decode_step_s: float = 0.0
    """Assumed: seconds that a decoding step of a small model takes at least, whatever it reads."""


RECIPES = {
    "paper": Recipe(
        models=(
            Model("Qwen3-4B", 4.02e9, 36, 32 * 128, 8 * 128),
            Model("Qwen3-14B", 14.77e9, 40, 40 * 128, 8 * 128, 2),
        ),
        gpus=8, steps=305, responses=512 * 8, evaluations=305 // 20 + 1, evaluated=(30 + 30 + 30 + 60) * 32,
        prompt=300, response=4000.0, rest_s=60, mfu=0.40, vllm_memory=0.70,
    ),
    "gsm8k": Recipe(
        models=(
            Model("Qwen2.5-0.5B-Instruct", 0.494e9, 24, 14 * 64, 2 * 64),
            Model("Qwen3-0.6B", 0.596e9, 28, 16 * 128, 8 * 128),
            Model("Qwen3-1.7B", 1.72e9, 28, 16 * 128, 8 * 128),
        ),
        gpus=1, steps=100, responses=128 * 8, evaluations=100 // 20 + 1, evaluated=1319,
        prompt=200, response=250.0, rest_s=15, mfu=0.15, vllm_memory=0.35, recomputed=False,
        decode_step_s=0.008,
    ),
}  # fmt: skip


def rollout_s(recipe: Recipe, model: Model, responses: int) -> float:
    """Seconds to decode; a step reads the weights and every sequence's cache, of average length, once."""
    cache = 2 * 2 * model.layers * model.kv_width * (recipe.prompt + recipe.response / 2)
    memory = recipe.vllm_memory * MEMORY * model.tensor_parallel
    weights = 2 * model.parameters
    engines = recipe.gpus / model.tensor_parallel
    sequences = min((memory - weights) / cache, responses / engines)
    read = (weights + sequences * cache) / (BANDWIDTH * DECODING * model.tensor_parallel)
    rate = sequences / max(read, recipe.decode_step_s) * engines
    return responses * recipe.response / rate * TAIL


def training_s(recipe: Recipe, model: Model) -> float:
    """Seconds of an anchor pass (2 FLOPs per parameter and token) and of training (6, or 8 with recomputation)."""
    length = recipe.prompt + recipe.response
    attention = 4 * model.layers * model.query_width * length / 2  # FLOPs of a forward pass, a token
    forward = 2 * model.parameters + attention
    passes = 1 + (4 if recipe.recomputed else 3)
    return recipe.responses * length * forward * passes / (recipe.gpus * FLOPS * recipe.mfu)


def held_gb(recipe: Recipe, model: Model) -> float:
    """Gigabytes per GPU of float32 weights, gradients and AdamW's two moments, sharded over all GPUs."""
    return 16 * model.parameters / recipe.gpus / 1e9


def main(recipe: Recipe) -> None:
    """Print one row per model."""
    print(
        f"mean response of {recipe.response:.0f} tokens; {recipe.steps} steps, {recipe.evaluations} evaluations, "
        f"{recipe.gpus} GPUs"
    )
    head = "model                  rollout s  training s  step s  evaluation s  hours  GPU-hours"
    print(f"{head}  weights and optimizer, GB per GPU")
    for model in recipe.models:
        rollout, training = rollout_s(recipe, model, recipe.responses), training_s(recipe, model)
        step = rollout + training + recipe.rest_s
        evaluation = rollout_s(recipe, model, recipe.evaluated)
        hours = (recipe.steps * step + recipe.evaluations * evaluation) / 3600
        row = f"{model.name:22} {rollout:9.0f} {training:11.0f} {step:7.0f} {evaluation:13.0f}"
        print(f"{row} {hours:6.1f} {hours * recipe.gpus:10.0f} {held_gb(recipe, model):35.0f}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [name] if name in RECIPES:
            main(RECIPES[name])
        case [name, tokens] if name in RECIPES:
            main(replace(RECIPES[name], response=float(tokens)))
        case _:
            raise SystemExit(__doc__)
