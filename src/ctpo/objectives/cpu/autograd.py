"""The C pass as a differentiable function.

The forward pass also leaves the gradient of the loss, and the backward pass hands it over. Other gradients run the
pass again: those of token losses, and a second backward pass over a retained graph. Second derivatives come from the
definition, whose every step torch can differentiate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctpo.objectives.cpu.library import available, library
from ctpo.objectives.cpu.native import BadSegmentsError, Parts, forward, gradient_of
from ctpo.objectives.cpu.supported import call_refusal, objective_refusal, plain
from ctpo.objectives.inputs import Inputs
from ctpo.objectives.ratios import Ratio
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.reference import Output
from ctpo.objectives.stats import finalise_numbers
from ctpo.objectives.surrogates import Surrogate
from ctpo.objectives.trust_regions import TrustRegion

Definition = Callable[[Inputs], Output]


def native_output(
    ratio: Ratio,
    region: TrustRegion,
    surrogate: Surrogate,
    reduction: Reduction,
    inputs: Inputs,
    definition: Definition,
) -> Output | None:
    """The output of a call by the C pass, or None where the definition has to run.

    Args:
        ratio, region, surrogate, reduction: the parts of the objective.
        inputs: the call's arguments.
        definition: computes the same output in torch; for second derivatives.
    """
    refused = objective_refusal(ratio, region, surrogate) or call_refusal(inputs)
    if refused or not available():
        return None
    parts = Parts(ratio, region, surrogate, reduction)  # type: ignore[arg-type]  # as the refusals have seen
    try:
        if torch.is_grad_enabled() and inputs.logps.requires_grad:
            sums: list[list[float]] = []
            loss, token_loss = _Native.apply(inputs.logps, inputs, parts, definition, sums)  # type: ignore[no-untyped-call]
        else:
            run = forward(parts, inputs, with_gradient=False)
            loss, token_loss, sums = run.loss, run.token_loss, [run.sums]
    except BadSegmentsError:
        return None  # the definition's checks say what is wrong
    return Output(loss, token_loss, finalise_numbers(sums[0]))


def refuse(
    ratio: Ratio, region: TrustRegion, surrogate: Surrogate, inputs: Inputs, details: bool, sharded: bool
) -> None:
    """Raise if `backend="native"` cannot run a call.

    Raises:
        ValueError: with the reason.
    """
    reason = objective_refusal(ratio, region, surrogate) or call_refusal(inputs)
    if details:
        reason = "it leaves no details of the tokens"
    if sharded:
        reason = "the sequences are sharded over processes"
    if reason is not None:
        raise ValueError(f'backend: "native" cannot run this call: {reason}; use backend="auto".')
    library()


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logps: Tensor, inputs: Inputs, parts: Parts, definition: Definition, sums: list[list[float]]
    ) -> tuple[Tensor, Tensor]:
        run = forward(parts, inputs, with_gradient=True)
        sums.append(run.sums)
        ctx.save_for_backward(logps)
        ctx.set_materialize_grads(False)
        ctx.inputs, ctx.parts, ctx.definition = inputs, parts, definition
        ctx.versions = _versions(inputs)
        ctx.gradients = [run.gradient]
        return run.loss, run.token_loss

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor | None, of_tokens: Tensor | None) -> tuple[Tensor | None, ...]:
        (logps,) = ctx.saved_tensors  # an error where the graph was freed
        upstream = [x for x in (of_loss, of_tokens) if x is not None]
        if not upstream:
            return (None,) * 5
        if torch.is_grad_enabled() or not all(plain(x) for x in upstream):
            return (_by_definition(ctx, logps, of_loss, of_tokens), None, None, None, None)
        gradient = _handed_over(ctx) if of_tokens is None else None
        if gradient is None:
            _refuse_changes(ctx)
            factor = 0.0 if of_loss is None else float(of_loss)
            gradient = gradient_of(ctx.parts, ctx.inputs, factor, of_tokens)
        elif of_loss is not None and float(of_loss) != 1.0:
            gradient.mul_(of_loss)
        return (gradient.to(logps.dtype), None, None, None, None)


def _handed_over(ctx: Any) -> Tensor | None:
    """The gradient that the forward pass left; None if an earlier backward pass took it. Safe under threads."""
    try:
        return ctx.gradients.pop()  # type: ignore[no-any-return]
    except IndexError:
        return None


def _by_definition(ctx: Any, logps: Tensor, of_loss: Tensor | None, of_tokens: Tensor | None) -> Tensor:
    """The gradient as torch computes it from the definition; differentiable if gradients are enabled."""
    _refuse_changes(ctx)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        out = ctx.definition(ctx.inputs)
    pairs = [(y, dy) for y, dy in ((out.loss, of_loss), (out.token_loss, of_tokens)) if dy is not None]
    outputs, upstream = zip(*pairs, strict=True)
    (gradient,) = torch.autograd.grad(outputs, logps, upstream, create_graph=again)
    return gradient


def _versions(inputs: Inputs) -> list[tuple[Tensor, int]]:
    """Every tensor of a call with the number of changes made to it. Tensors of inference mode cannot be changed."""
    return [(x, x._version) for x in inputs.tensors() if not x.is_inference()]


def _refuse_changes(ctx: Any) -> None:
    """Raise if a tensor of the call was changed since, as autograd does.

    Raises:
        RuntimeError: one was.
    """
    if any(x._version != version for x, version in ctx.versions):
        raise RuntimeError(
            "one of the tensors of an objective's call was changed in place before its backward pass; pass a copy."
        )
