"""How far the trainer's log-probs are from those that the rollout engine reported for the same policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.numerics import SATURATION, prefix_dtype
from ctpo.objectives.tokens import sanitise


class EngineDrift:
    """Collects sums over tokens of δ = log π_trainer − log π_engine, measured before any update on those tokens."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._highest: list[Tensor] = []

    @torch.no_grad()
    def add(self, logps: Tensor, engine_logps: Tensor, mask: Tensor) -> None:
        """Add the tokens of some responses. This does not wait for the device.

        Args:
            logps, engine_logps: [B, T] log-probs of the trainer and of the engine, nats. Tokens that the engine could
                not score (NaN) are left out.
            mask: [B, T] True where the model sampled the token.
        """
        tokens = sanitise(logps.detach(), engine_logps, mask, Padded())
        wide = prefix_dtype(mask.device)
        delta = tokens.log_ratio.to(wide)
        weight = torch.where(tokens.kept, delta.exp(), 0.0)
        rows = tokens.kept.any(dim=-1)
        whole = delta.sum(dim=-1).clamp(-SATURATION, SATURATION).exp()
        whole = torch.where(rows, whole, 0.0)
        parts = (
            *(tokens.kept, delta.abs(), delta, torch.where(tokens.kept, delta.expm1() - delta, 0.0)),
            *(weight, weight.square(), rows, whole, whole.square()),
        )
        self._sums.append(torch.stack([part.sum().to(wide) for part in parts]))
        self._highest.append(delta.abs().amax() if delta.numel() else delta.new_zeros(()))

    def flush(self, accelerator: Any) -> dict[str, float]:
        """The figures since the last call, over all processes; empty if there were no tokens. Every process must call.

        docs/reference/diagnostics.md gives their equations. Mean and largest |δ| and the KL estimates are in nats.
        """
        device = accelerator.device
        zero = torch.zeros(9, dtype=prefix_dtype(device), device=device)
        mine = torch.cat([sum(self._sums, zero), max([*self._highest, zero[0]])[None]])
        everyone = accelerator.gather(mine[None])
        self._sums, self._highest = [], []
        n, gap, total, k3, w, ww, rows, v, vv = everyone[:, :9].sum(dim=0).tolist()
        if not n:
            return {}
        return {
            "engine_gap_mean": gap / n,
            "engine_gap_max": float(everyone[:, 9].max()),
            "engine_kl_k1": -total / n,
            "engine_kl_k3": k3 / n,
            "engine_ess": w**2 / (n * ww),
            "engine_ess_sequence": v**2 / (rows * vv),
        }

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What was added since the last `flush`, for a checkpoint."""
        return {"sums": self._sums, "highest": self._highest}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Continue from what `state_dict` returned."""
        self._sums, self._highest = list(state["sums"]), list(state["highest"])
