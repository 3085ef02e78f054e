"""Whether a trainer multiplies its float32 weights in bfloat16, as `compute_dtype` decides."""

from __future__ import annotations

from typing import Any

import torch

from ctpo import fast_cpu


def computes_in_bfloat16(args: Any, model: Any) -> bool:
    """Whether scoring and sampling multiply the model's float32 weights in bfloat16.

    Args:
        args: a `CTPOConfig`. For the arguments of another trainer, which have no `compute_dtype`, the answer is no.
        model: the transformers model, with or without wrappers.
    """
    if args.bf16 or args.fp16 or not hasattr(args, "compute_dtype"):
        return False
    return wants_bfloat16(model, args.compute_dtype, exact_anchor=args.anchor == "rollout")


def wants_bfloat16(model: Any, compute_dtype: str, *, exact_anchor: bool) -> bool:
    """Whether products with the model's float32 weights are to be in bfloat16.

    The parameters, their gradients and the optimizer stay in float32.

    Args:
        model: a transformers model; the width of its embeddings decides what is measured.
        compute_dtype: "float32", "bfloat16", or "auto". On a CPU, "auto" takes bfloat16 if one measurement per process
            finds it faster. On other devices "auto" leaves the choice to `bf16`.
        exact_anchor: whether the ratio's denominator comes from the rollout engine. "auto" then stays in float32, in
            which the engine and the trainer agree.
    """
    if model.dtype != torch.float32 or compute_dtype == "float32":
        return False
    if compute_dtype == "bfloat16":
        return True
    device = next(model.parameters()).device.type
    width = int(model.get_input_embeddings().embedding_dim)
    return device == "cpu" and not exact_anchor and fast_cpu.bfloat16_pays(width)
