"""What the two paper recipes cost on eight H100 GPUs: an estimate, from counts and three assumed efficiencies.

python recipes/paper-qwen3-4b/cost.py [mean response, tokens]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

# Given by the recipe.
STEPS, RESPONSES, SAMPLES = 305, 512 * 8, 32
EVALUATIONS, PROBLEMS = STEPS // 20 + 1, 30 + 30 + 30 + 60
# Of the hardware: an H100 SXM's dense bfloat16 rate, memory bandwidth and memory.
GPUS, FLOPS, BANDWIDTH, MEMORY = 8, 989e12, 3.35e12, 80e9
# Assumed: share of the FLOPs a trainer reaches, share of the bandwidth a decoder reaches, share of the memory
# vLLM may take, what the last responses of a batch add to its rollout, seconds a step for weights and judging.
MFU, DECODING, VLLM_MEMORY, TAIL, REST = 0.40, 0.70, 0.70, 1.3, 60
PROMPT = 300


@dataclass(frozen=True)
class Model:
    """Counts from the model's configuration."""

    name: str
    parameters: float
    layers: int
    query_width: int
    """Attention heads times head size."""
    kv_width: int
    tensor_parallel: int


MODELS = (
    Model("Qwen3-4B", 4.02e9, 36, 32 * 128, 8 * 128, 1),
    Model("Qwen3-14B", 14.77e9, 40, 40 * 128, 8 * 128, 2),
)


def rollout_s(model: Model, response: float, responses: int) -> float:
    """Seconds to decode; a step reads the weights and every sequence's cache once."""
    cache = 2 * 2 * model.layers * model.kv_width * (PROMPT + response / 2)  # bytes a sequence, on average
    memory = VLLM_MEMORY * MEMORY * model.tensor_parallel
    weights = 2 * model.parameters
    sequences = min((memory - weights) / cache, responses / (GPUS / model.tensor_parallel))
    step = (weights + sequences * cache) / (BANDWIDTH * DECODING * model.tensor_parallel)
    rate = sequences / step * GPUS / model.tensor_parallel
    return responses * response / rate * TAIL


def training_s(model: Model, response: float) -> float:
    """Seconds of an anchor pass (2 FLOPs a parameter and token) and of training with recomputation (8)."""
    length = PROMPT + response
    attention = 4 * model.layers * model.query_width * length / 2  # FLOPs of a forward pass, a token
    forward = 2 * model.parameters + attention
    return RESPONSES * length * forward * (1 + 4) / (GPUS * FLOPS * MFU)


def main(response: float) -> None:
    """Print a row a model."""
    print(f"mean response of {response:.0f} tokens; {STEPS} steps, {EVALUATIONS} evaluations, {GPUS} GPUs")
    print("model      rollout s  training s  step s  evaluation s  days  GPU-hours")
    for model in MODELS:
        rollout, training = rollout_s(model, response, RESPONSES), training_s(model, response)
        step = rollout + training + REST
        evaluation = rollout_s(model, response, PROBLEMS * SAMPLES)
        hours = (STEPS * step + EVALUATIONS * evaluation) / 3600
        row = f"{model.name:10} {rollout:9.0f} {training:11.0f} {step:7.0f} {evaluation:13.0f}"
        print(f"{row} {hours / 24:5.1f} {hours * GPUS:10.0f}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 4000.0)
