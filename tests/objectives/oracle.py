"""Scalar-loop oracle in Python floats, written from the papers' formulas with max, min and clip.

Shares no code and no structure with the library: plain loops, no tensors. It returns the loss and the
analytic gradient of every log-prob.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Rows = list[list[float]]


@dataclass
class Answer:
    loss: float
    grad: Rows
    clipped: int
    dual: int
    tokens: int


def clip(x: float, lo: float, hi: float) -> float:
    return min(max(x, lo), hi)


def weight_of(family: str, d: list[float], k: int, decay: float = 1.0) -> float:
    """log weight of the k-th generated token of a row whose log ratios are d."""
    prefix = d[: k + 1]
    if family == "token":
        return d[k]
    if family == "cumulative":
        return math.fsum(prefix)
    if family == "decayed":
        return math.fsum(x * decay ** (k - s) for s, x in enumerate(prefix))
    if family == "prefix-mean":
        return math.fsum(prefix) / len(prefix)
    if family == "sequence":
        return math.fsum(d)
    if family == "sequence-mean":
        return math.fsum(d) / len(d)
    if family == "min-prefix":
        return d[k] + (min(d[:k]) if k else 0.0)
    if family == "unit":
        return 0.0
    raise AssertionError(family)


def ppo_term(x: float, a: float, lo: float, hi: float, dual: float | None) -> tuple[float, float, bool, bool]:
    """(loss, d loss / d x, clipped, dual-clipped) of one token; bounds are log-space."""
    rho = math.exp(x)
    plain, bounded = -a * rho, -a * math.exp(clip(x, lo, hi))
    loss = max(plain, bounded)
    slope = plain if plain >= bounded else 0.0
    clipped = bounded > plain
    if dual is not None and a < 0 and loss > -a * math.exp(dual):
        return -a * math.exp(dual), 0.0, clipped, True
    return loss, slope, clipped, False


def bounds(spec: dict[str, Any], t: int) -> tuple[float, float, float | None]:
    low, high, dual = spec["low"], spec["high"], spec.get("dual")
    if spec.get("convention", "ratio") == "log":
        s = t ** spec.get("power", 0.0)
        return -low * s, high * s, None if dual is None else dual * s
    return (
        (math.log(1 - low) if low < 1 else -math.inf),
        math.log(1 + high),
        None if dual is None else math.log(dual),
    )


def evaluate(
    spec: dict[str, Any],
    reduction: str,
    logps: Rows,
    old: Rows,
    adv: list[Any],
    mask: list[list[bool]],
    norm: float = 1.0,
) -> Answer:
    """Loss and gradient of one padded batch."""
    rows = [[t for t, m in enumerate(row) if m] for row in mask]
    tokens, sequences = sum(map(len, rows)), sum(1 for r in rows if r)
    loss, clipped, duals = 0.0, 0, 0
    grad = [[0.0] * len(row) for row in logps]
    for i, where in enumerate(rows):
        d = [logps[i][t] - old[i][t] for t in where]
        per = {
            "token-mean": 1 / max(tokens, 1),
            "seq-mean-token-mean": 1 / max(sequences, 1) / max(len(where), 1),
            "seq-mean-token-sum": 1 / max(sequences, 1),
            "seq-mean-token-sum-norm": 1 / max(sequences, 1) / norm,
            "sum": 1.0,
        }[reduction]
        for k, t in enumerate(where):
            a = adv[i][t] if isinstance(adv[i], list) else adv[i]
            x = weight_of(spec["family"], d, k, spec.get("decay", 1.0))
            lo, hi, dual = bounds(spec, k + 1) if "low" in spec else (-math.inf, math.inf, None)
            if spec.get("surrogate", "min-clip") == "min-clip":
                value, slope, c, b = ppo_term(x, a, lo, hi, dual)
                clipped, duals = clipped + c, duals + b
            elif spec["surrogate"] == "linear":
                value = slope = -a * math.exp(x)
            else:  # stop-gradient weight
                w = math.exp(clip(x, lo, hi))
                value, slope = -a * w * logps[i][t], -a * w
                clipped += x > hi or x < lo
            loss += per * value
            if spec.get("gradient", "token") == "token":
                grad[i][t] += per * slope
            else:
                span = {"cumulative": k + 1, "sequence": len(where), "sequence-mean": len(where)}[
                    spec["family"]
                ]
                share = 1 / len(where) if spec["family"] == "sequence-mean" else 1.0
                for s in where[:span]:
                    grad[i][s] += per * slope * share
    return Answer(loss, grad, clipped, duals, tokens)
