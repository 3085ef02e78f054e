"""Losses of other papers and trainers, token by token in float64, written from their formulas.

It shares no code with the library: loops over responses and their sampled tokens, on scalars that autograd
differentiates. `sg` stops the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Row = list["Token"]
Losses = list[Tensor]


@dataclass
class Token:
    """A sampled token."""

    lp: Tensor
    """log π, differentiable."""
    old: float
    """log μ"""
    a: float
    """The advantage."""
    turn: int

    @property
    def d(self) -> Tensor:
        return self.lp - self.old

    @property
    def r(self) -> Tensor:
        return self.d.exp()

    @property
    def pi(self) -> float:
        return math.exp(self.lp.item())

    @property
    def mu(self) -> float:
        return math.exp(self.old)


def sg(x: Tensor) -> float:
    return x.item()


def each(loss: Callable[..., Tensor]) -> Callable[..., list[Losses]]:
    """A loss of one token as a loss of rows."""
    return lambda rows, **knobs: [[loss(token, **knobs) for token in row] for row in rows]


def dppo_tv(x: Token, delta_low: float = 0.2, delta_high: float = 0.2) -> Tensor:
    shift = x.pi - x.mu
    keep = (x.a > 0 and shift <= delta_high) or (x.a < 0 and shift >= -delta_low)
    return -x.r * x.a if keep else 0 * x.lp


def dppo_kl(x: Token, delta_low: float = 0.05, delta_high: float = 0.05) -> Tensor:
    rest, old_rest = -math.expm1(x.lp.item()), -math.expm1(x.old)
    kl = x.mu * (x.old - x.lp.item()) + old_rest * math.log(old_rest / rest)
    back = (x.a > 0 and x.pi <= x.mu) or (x.a < 0 and x.pi >= x.mu)
    keep = back or kl <= (delta_high if x.a > 0 else delta_low)
    return -x.r * x.a if keep else 0 * x.lp


def ipo(x: Token, delta: float = 0.1, tau: float = 2e-3) -> Tensor:
    keep = abs(x.pi - x.mu) <= delta
    return (-x.r * x.a if keep else 0) + 0.5 * tau * x.d**2


def kimi(x: Token, tau: float = 0.1) -> Tensor:
    return -x.a * x.lp + tau / 2 * x.d**2


def sapo(x: Token, tau_pos: float = 1.0, tau_neg: float = 1.05) -> Tensor:
    tau = tau_pos if x.a > 0 else tau_neg
    return -x.a * 4 / tau * torch.sigmoid(tau * (x.r - 1))


def ce_gppo(
    x: Token,
    ratio_low: float = 0.2,
    ratio_high: float = 0.28,
    beta_low: float = 0.5,
    beta_high: float = 1.0,
) -> Tensor:
    if x.a > 0 and x.r > 1 + ratio_high:
        return -beta_high * (1 + ratio_high) * x.a * x.r / sg(x.r)
    if x.a < 0 and x.r < 1 - ratio_low:
        return -beta_low * (1 - ratio_low) * x.a * x.r / sg(x.r)
    return -x.a * x.r


def dispo(
    x: Token,
    ratio_low_pos: float = 1.0,
    ratio_high_pos: float = 4.0,
    ratio_low_neg: float = 1.0,
    ratio_high_neg: float = 4.0,
) -> Tensor:
    low, high = (ratio_low_pos, ratio_high_pos) if x.a >= 0 else (ratio_low_neg, ratio_high_neg)
    return -min(max(sg(x.r), 1 - low), 1 + high) * x.a * x.lp


def aspo(x: Token, ratio_low: float = 0.2, ratio_high: float = 0.2, ratio_dual: float = 3.0) -> Tensor:
    if x.a < 0:
        clipped = x.r.clamp(min=1 - ratio_low)
        return -x.a * (ratio_dual * x.lp if clipped > ratio_dual else clipped)
    clipped = x.r.clamp(max=1 + ratio_high)
    if 1 / clipped > ratio_dual:
        return -x.a * ratio_dual * x.lp
    return -x.a * clipped / sg(clipped) / sg(clipped)


def grpo(x: Token, low: float, high: float, dual: float | None) -> Tensor:
    loss = torch.maximum(-x.a * x.r, -x.a * x.r.clamp(1 - low, 1 + high))
    return loss.clamp(max=-x.a * dual) if x.a < 0 and dual is not None else loss


def opsm(
    rows: list[Row],
    delta: float = 0.5,
    ratio_low: float = 0.2,
    ratio_high: float = 0.28,
    ratio_dual: float | None = 3.0,
) -> list[Losses]:
    out = []
    for row in rows:
        drift = sum(x.old - x.lp.item() for x in row) / max(len(row), 1)
        out.append(
            [
                0 * x.lp if x.a < 0 and drift > delta else grpo(x, ratio_low, ratio_high, ratio_dual)
                for x in row
            ]
        )
    return out


def cppo(rows: list[Row], delta: float = 0.15, w_min: float = 0.8, budget: float = 0.02) -> list[Losses]:
    out = []
    for row in rows:
        n = len(row)
        shift = [abs(x.pi - x.mu) for x in row]
        ranked = sorted(shift)
        rank = 0.9 * max(n - 1, 0)
        k = math.floor(rank)
        p90 = 0.0
        if n:
            p90 = ranked[k] + (rank - k) * (ranked[min(k + 1, n - 1)] - ranked[k])
        b = min(max(p90, budget), 2 * budget)
        granted = used = 0.0
        losses = []
        for t, x in enumerate(row, 1):
            w = 1.0 if n == 1 else w_min + (1 - w_min) * (n - t) / (n - 1)
            z = w * shift[t - 1]
            limit = min(delta, delta + b * granted - used)
            keep = x.a * (sg(x.r) - 1) <= 0 or z <= limit
            losses.append(-x.r * x.a if keep else 0 * x.lp)
            granted, used = granted + w, used + z
        out.append(losses)
    return out


def gmpo(rows: list[Row], log_low: float = 0.4, log_high: float = 0.4) -> list[Losses]:
    def clipped(x: Token) -> Tensor:
        sign = (x.a > 0) - (x.a < 0)
        return sign * torch.minimum(sign * x.d, sign * x.d.clamp(-log_low, log_high))

    out = []
    for row in rows:
        mean = sum((clipped(x) for x in row), torch.zeros(())) / max(len(row), 1)
        out.append([-x.a * mean.exp() for x in row])
    return out


def topr(rows: list[Row], level: str = "token") -> list[Losses]:
    out = []
    for row in rows:
        total = math.fsum(sg(x.d) for x in row)
        log_w = [total if level == "sequence" else sg(x.d) for x in row]
        out.append(
            [
                -(1 if x.a >= 0 else math.exp(min(w, 0.0))) * x.a * x.lp
                for x, w in zip(row, log_w, strict=True)
            ]
        )
    return out


def gamma(x: float, a: float, knobs: dict[str, float]) -> float:
    side = "pos" if a >= 0 else "neg"
    k, scale = knobs[f"k_{side}"], knobs[f"lambda_{side}"]
    x = min(max(x, math.log(1e-8)), 20.0)
    return math.exp(scale + k * x - scale * math.exp(x))


def vespo(rows: list[Row], *, prefix: bool = False, **given: float) -> list[Losses]:
    knobs = {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0} | given
    out = []
    for row in rows:
        d = [sg(x.d) for x in row]
        sums = [math.fsum(d[: t + 1] if prefix else d) for t in range(len(row))]
        out.append([-gamma(c, x.a, knobs) * x.a * x.lp for c, x in zip(sums, row, strict=True)])
    return out


def fspo(rows: list[Row], log_low: float = 0.025, log_high: float = 0.05, power: float = 0.5) -> list[Losses]:
    out = []
    for row in rows:
        c = sum((x.d for x in row), torch.zeros((), dtype=torch.float64))
        scale = max(len(row), 1) ** power
        clip = c.clamp(-log_low * scale, log_high * scale).exp()
        weight = c.clamp(max=max(10.0, log_high * scale)).exp() if c > 10 else c.exp()
        weight = (
            weight if c <= 10 else weight.detach() * (1 + c - c.detach())
        )  # the ceiling keeps the gradient
        out.append([torch.maximum(-x.a * weight, -x.a * clip) for x in row])
    return out


def ctpo_turn(
    rows: list[Row],
    log_low: float = 0.025,
    log_high: float = 0.05,
    log_dual: float | None = 0.05,
    power: float = 0.5,
) -> list[Losses]:
    out = []
    for row in rows:
        losses, before, turn, t = [], 0.0, None, 0
        for x in row:
            if x.turn != turn:
                before, turn, t = 0.0, x.turn, 0
            t += 1
            c = before + x.d  # the gradient is that of the current token
            before += sg(x.d)
            s = t**power
            value = c if c <= 10 else 10.0 + x.d - sg(x.d)
            loss = torch.maximum(-x.a * value.exp(), -x.a * c.clamp(-log_low * s, log_high * s).exp())
            if x.a < 0 and log_dual is not None:
                loss = loss.clamp(max=-x.a * math.exp(log_dual * s))
            losses.append(loss)
        out.append(losses)
    return out


def m2po(
    rows: list[Row], moment: float = 0.04, ratio_low: float = 0.3, ratio_high: float = 0.5
) -> list[Losses]:
    moving = [sg(x.d) ** 2 for row in rows for x in row if (x.a > 0 and x.r > 1) or (x.a < 0 and x.r < 1)]

    def mean(cap: float) -> float:
        return math.fsum(min(v, cap) for v in moving) / len(moving)

    tau = math.inf
    if moving and mean(math.inf) > moment:
        low, high = 0.0, max(moving)
        for _ in range(200):  # bisection; the mean grows with the cap
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) <= moment else (low, middle)
        tau = math.sqrt(low)
    bottom, top = min(math.exp(-tau), 1 - ratio_low), max(math.exp(tau), 1 + ratio_high)
    return [[torch.maximum(-x.a * x.r, -x.a * x.r.clamp(bottom, top)) for x in row] for row in rows]


TOKEN_MEAN, SEQUENCES = "token-mean", "seq-mean-token-mean"
PUBLISHED: dict[str, tuple[Callable[..., list[Losses]], str]] = {
    "dppo-tv": (each(dppo_tv), TOKEN_MEAN),
    "dppo-kl": (each(dppo_kl), TOKEN_MEAN),
    "ipo": (each(ipo), TOKEN_MEAN),
    "kimi": (each(kimi), TOKEN_MEAN),
    "sapo": (each(sapo), SEQUENCES),
    "ce-gppo": (each(ce_gppo), TOKEN_MEAN),
    "dispo": (each(dispo), TOKEN_MEAN),
    "aspo": (each(aspo), TOKEN_MEAN),
    "opsm": (opsm, SEQUENCES),
    "cppo": (cppo, TOKEN_MEAN),
    "gmpo": (gmpo, SEQUENCES),
    "topr": (topr, TOKEN_MEAN),
    "vespo": (vespo, TOKEN_MEAN),
    "ctpo-vespo": (lambda rows, **knobs: vespo(rows, prefix=True, **knobs), TOKEN_MEAN),
    "fspo": (fspo, SEQUENCES),
    "ctpo-turn": (ctpo_turn, TOKEN_MEAN),
    "m2po": (m2po, TOKEN_MEAN),
}
"""The losses of rows and the reduction of each preset."""


def published_loss(
    name: str,
    logps: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    turn_ids: Tensor,
    reduction: str | None = None,
    norm: float = 1.0,
    **knobs: Any,
) -> Tensor:
    """The loss of padded rows, differentiable by logps. Without a reduction, it is the preset's own."""
    losses_of, own = PUBLISHED[name]
    rows = []
    for i, where in enumerate(mask.tolist()):
        row = []
        for t, sampled in enumerate(where):
            if sampled:
                a = advantages[i, t] if advantages.ndim == 2 else advantages[i]
                row.append(Token(logps[i, t], old[i, t].item(), a.item(), int(turn_ids[i, t])))
        rows.append(row)
    tokens, sequences = sum(map(len, rows)), sum(1 for row in rows if row)
    total = torch.zeros((), dtype=logps.dtype)
    for row, losses in zip(rows, losses_of(rows, **knobs), strict=True):
        share = {
            "token-mean": 1 / max(tokens, 1),
            "seq-mean-token-mean": 1 / max(sequences, 1) / max(len(row), 1),
            "seq-mean-token-sum": 1 / max(sequences, 1),
            "seq-mean-token-sum-norm": 1 / max(sequences, 1) / norm,
            "sum": 1.0,
        }[reduction or own]
        for loss in losses:
            total = total + share * loss
    return total
