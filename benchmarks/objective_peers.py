"""The losses that benchmarks/objectives.py compares with; what each is stands there."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import torch
from torch import Tensor


def eager_ctpo(logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, statistics: bool) -> Tensor:
    """CTPO from the paper's description, one operation a line."""
    m = mask.to(logps.dtype)
    d = (logps - old).clamp(-20, 20)
    c = (d * m).cumsum(-1)
    log_ratio = (c.detach() + logps - logps.detach()).clamp(max=10)
    scale = m.cumsum(-1).clamp(min=1).sqrt()
    a = advantages.unsqueeze(-1)
    ratio = log_ratio.exp() * m
    clipped = torch.maximum(torch.minimum(log_ratio, 0.05 * scale), -0.025 * scale).exp() * m
    dual = (0.05 * scale).exp()
    worst = torch.maximum(-a * ratio, -a * clipped)
    token_loss = torch.where(a < 0, torch.minimum(worst, -a * dual), worst)
    loss = (token_loss * m).sum() / m.sum()
    if statistics:
        report(ratio.detach(), log_ratio.detach(), scale, a, mask, d)
    return loss


def report(
    ratio: Tensor, log_ratio: Tensor, scale: Tensor, a: Tensor, mask: Tensor, d: Tensor
) -> dict[str, float]:
    """The kinds of figures the published implementation reports, each read to the host."""
    values, x, s = ratio[mask], log_ratio[mask], scale[mask]
    adv = a.expand_as(ratio)[mask]
    figures = {"kl": (-d)[mask].mean().item(), "mean": values.mean().item()}
    figures |= {"min": values.min().item(), "max": values.max().item()}
    figures |= {f"p{q}": torch.quantile(values[: 1 << 24], q / 100).item() for q in (25, 50, 75, 90, 95, 99)}
    figures["high"] = ((x > 0.05 * s) & (adv > 0)).sum().item()
    figures["low"] = ((x < -0.025 * s) & (adv < 0)).sum().item()
    figures["dual"] = ((x > 0.05 * s) & (adv < 0)).sum().item()
    figures |= {"scale": s.mean().item(), "scale_p50": torch.quantile(s[: 1 << 24], 0.5).item()}
    return figures


def trl_loss() -> Callable[..., Tensor] | str:
    """TRL's own loss on a stand-in trainer, or why it cannot run."""
    try:
        from trl import GRPOTrainer
    except ImportError as error:
        return f"not installed ({error})"
    accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)
    args = SimpleNamespace(delta=3.0, use_bias_correction_kl=False, steps_per_generation=1)
    trainer = SimpleNamespace(
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.0,
        loss_type="grpo", epsilon_low=0.2, epsilon_high=0.28, args=args, aux_loss_enabled=False,
        use_vllm=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, accelerator=accelerator,
        _entropy_bonus_enabled=False, _metrics={"train": defaultdict(list)},
    )  # fmt: skip

    def loss(logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        empty = torch.zeros(len(logps), 0, dtype=torch.long, device=logps.device)
        ids = torch.zeros(logps.shape, dtype=torch.long, device=logps.device)
        entropies = torch.zeros_like(old)
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logps, entropies, None)
        inputs = {
            "prompt_ids": empty, "prompt_mask": empty, "completion_ids": ids, "completion_mask": mask.long(),
            "advantages": advantages, "old_per_token_logps": old,
        }  # fmt: skip
        return GRPOTrainer._compute_loss(trainer, None, inputs)

    return loss


def liger_loss() -> Callable[..., Tensor] | str:
    """Liger's loss on given log-probs, or why it cannot run."""
    try:
        from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction
    except ImportError as error:
        return f"not installed ({error})"

    def loss(logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        m = mask.to(logps.dtype)
        result = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            logps, m, advantages, m, old_per_token_logps=old, epsilon_low=0.2, epsilon_high=0.28, beta=0.0,
            loss_type="grpo", delta=3.0,
        )  # fmt: skip
        return result[0] if isinstance(result, tuple) else result

    return loss


def published_loss(files: list[Path]) -> Callable[..., Tensor]:
    """The published loss from a user's copies, of which only the definitions it needs are run.

    Raises:
        SystemExit: a file that cannot be read, or a definition that none of them holds.
    """
    names = ("masked_sum", "masked_mean", "agg_loss", "_compute_policy_loss_cum_token_la_impl")
    config = type("ActorConfig", (dict,), {"global_batch_info": {}})
    space: dict[str, Any] = {"torch": torch, "Any": Any, "Optional": Optional, "ActorConfig": config}
    for file in files:
        try:
            body = ast.parse(file.read_text()).body
        except (OSError, SyntaxError) as error:
            raise SystemExit(f"--published: {file} cannot be read as Python ({error}).") from None
        found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name in names]
        for node in found:
            node.decorator_list = []
        exec(compile(ast.Module(found, []), str(file), "exec"), space)
    missing = [name for name in names if name not in space]
    if missing:
        raise SystemExit(
            f"--published: {', '.join(missing)} not found in {', '.join(map(str, files))}; give "
            "verl/trainer/ppo/core_algos.py and verl/utils/torch_functional.py of github horizon-llm/CTPO."
        )
    space["verl_F"] = SimpleNamespace(**{name: space[name] for name in names[:2]})
    run = space[names[-1]]

    def loss(logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        return run(old, logps, advantages[:, None].expand_as(logps), mask, config=config())[0]

    return loss
