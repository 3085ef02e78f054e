"""Asynchronous runs on many GPUs: an estimate, from counts and a few assumptions (docs/explanation/scaling.md).

python recipes/scale.py [mean response, tokens]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from cost import BANDWIDTH, DECODING, FLOPS, MEMORY

GPUS = (8, 64, 512)
PROMPT, RESPONSE = 300, 4000.0
MINIBATCH = 256
"""Responses per update, as in the paper's recipes: 4,096 in 16 minibatches."""
STATE = 16
"""Bytes per parameter that training keeps: weights and gradients in bfloat16, master weights and Adam in float32."""
STATE_SHARE = 0.70
"""Assumed: share of the memory that this state may take; the rest is for activations."""
CACHE_SHARE = 0.85
"""Assumed: share of the memory that a rollout engine fills with weights and caches."""
NETWORK = 50e9 * 0.60
"""Bytes per second that a GPU receives: 400 Gb/s, of which 60 % are assumed."""


@dataclass(frozen=True)
class Model:
    """Counts from the model's configuration, and how it is assumed to be placed."""

    name: str
    parameters: float
    active: float
    """Parameters that one token passes."""
    layers: int
    query_width: int
    kv_width: int
    engine: int
    """GPUs of one rollout engine (tensor parallel)."""
    served: float
    """Bytes per weight in the rollout engine."""
    mfu: float
    """Assumed: share of the FLOPs that the trainer reaches."""


MODELS = (
    Model("Qwen3-4B", 4.02e9, 4.02e9, 36, 32 * 128, 8 * 128, 1, 2, 0.40),
    Model("Qwen3-14B", 14.77e9, 14.77e9, 40, 40 * 128, 8 * 128, 2, 2, 0.40),
    Model("Qwen3-235B-A22B", 235.1e9, 22.2e9, 94, 64 * 128, 4 * 128, 8, 1, 0.25),
)


@dataclass(frozen=True)
class Engine:
    """One rollout engine at work."""

    sequences: float
    """Responses that are decoded at the same time."""
    step_s: float
    """Seconds of one decoding step."""


def engine_of(model: Model, response: float) -> Engine:
    """A step reads the weights and the cache of every sequence, of average length, once."""
    cache = 2 * 2 * model.layers * model.kv_width * (PROMPT + response / 2)
    weights, room = model.served * model.parameters, CACHE_SHARE * MEMORY * model.engine
    sequences = (room - weights) / cache
    return Engine(sequences, room / (BANDWIDTH * DECODING * model.engine))


def trainer_rate(model: Model, response: float) -> float:
    """Responses per second that one GPU trains on: a forward pass four times, with recomputation; no anchor pass."""
    length = PROMPT + response
    forward = 2 * model.active + 4 * model.layers * model.query_width * length / 2
    return FLOPS * model.mfu / (4 * forward * length)


def row(model: Model, gpus: int, response: float) -> str:
    """One line of the table."""
    engine, trained = engine_of(model, response), trainer_rate(model, response)
    sampled = engine.sequences / engine.step_s / response / model.engine  # per GPU
    least = -(-STATE * model.parameters // (STATE_SHARE * MEMORY))  # GPUs that hold the training state
    trainers = max(least, gpus * sampled / (sampled + trained))
    engines = (gpus - trainers) // model.engine
    head = f"| {model.name} | {gpus} |"
    if engines < 1:
        return f"{head} does not fit: training needs {least:.0f} GPUs, an engine {model.engine} | | | | | |"
    trainers = gpus - engines * model.engine
    rate = min(engines * model.engine * sampled, trainers * trained)
    update = MINIBATCH / rate
    shipped = 2 * model.parameters / model.engine / NETWORK
    latency = engine.step_s * response
    cells = (
        f"{trainers:.0f} + {engines:.0f} × {model.engine}",
        f"{rate * response / 1000:,.0f}k",
        f"{update:,.1f} s",
        f"{shipped:.1f} s",
        f"{latency:.0f} s",
        f"{latency / update:,.1f}",
    )
    return f"{head} {' | '.join(cells)} |"


def main(response: float = RESPONSE) -> None:
    """Print the table."""
    print(
        "| model | GPUs | trainers + engines | tokens/s | an update | weights arrive in | a response | staleness |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        for gpus in GPUS:
            print(row(model, gpus, response))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
