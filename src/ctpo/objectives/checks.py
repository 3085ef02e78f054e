"""Checks of what a caller hands over: shapes and dtypes always, values where reading them is free (CPU)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from difflib import get_close_matches

import torch
from torch import Tensor

_BF16_WARNED = False


def choice(argument: str, value: object, known: Iterable[str]) -> str:
    """Return `value` when it is known.

    Raises:
        ValueError: naming the value, the known ones and the nearest match.
    """
    known = sorted(known)
    if isinstance(value, str) and value in known:
        return value
    near = get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{argument}: {value!r} is not known{hint} Known: {', '.join(known)}.")


def shapes(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, sequences: int | None) -> None:
    """Compare shapes and dtypes of one call; `sequences` is the number a per-sequence advantage must have.

    Raises:
        ValueError: naming the argument, what it holds and how to mend it.
    """
    for name, value in (
        ("logps", logps),
        ("old_logps", old_logps),
        ("advantages", advantages),
        ("mask", mask),
    ):
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name}: expected a torch.Tensor, got {type(value).__name__}; convert it first."
            )
    for name, value in (("logps", logps), ("old_logps", old_logps), ("advantages", advantages)):
        if not value.is_floating_point():
            raise ValueError(f"{name}: dtype {value.dtype} is not floating point; convert it with .float().")
    for name, value in (("old_logps", old_logps), ("mask", mask)):
        if value.shape != logps.shape:
            raise ValueError(
                f"{name}: shape {tuple(value.shape)} differs from logps {tuple(logps.shape)}; "
                "score and mask the same tokens."
            )
    per_sequence = (sequences,) if sequences is not None else None
    if advantages.shape != logps.shape and tuple(advantages.shape) != per_sequence:
        expected = f"{per_sequence} (one a sequence) or " if per_sequence is not None else ""
        raise ValueError(
            f"advantages: shape {tuple(advantages.shape)}; "
            f"expected {expected}{tuple(logps.shape)} (one a token)."
        )
    if mask.is_complex():
        raise ValueError(f"mask: dtype {mask.dtype} is not boolean; pass mask.bool().")


def mask_values(mask: Tensor) -> None:
    """Refuse a mask with values other than 0 and 1; looks on the CPU only, where reading them is free.

    Raises:
        ValueError: with one offending value.
    """
    if mask.dtype == torch.bool or mask.device.type != "cpu":
        return
    wrong = (mask != 0) & (mask != 1)
    if bool(wrong.any()):
        raise ValueError(f"mask: value {mask[wrong][0].item()} is neither 0 nor 1; pass a boolean mask.")


def warn_low_precision(logps: Tensor, old_logps: Tensor) -> None:
    """Warn once when log-probs arrive in half precision: the rounding is already in them."""
    global _BF16_WARNED
    half = [str(x.dtype) for x in (logps, old_logps) if x.dtype in (torch.bfloat16, torch.float16)]
    if half and not _BF16_WARNED:
        _BF16_WARNED = True
        warnings.warn(
            f"log-probs arrived in {half[0]}: their rounding flips 5-9 % of clip decisions at 1k-64k tokens. "
            "Compute log-softmax in float32 and keep the result there.",
            RuntimeWarning,
            stacklevel=3,
        )


def unusable_tokens(count: Tensor) -> None:
    """Raise when any token under the mask could not be used (policy `on_bad="raise"`; reads a value).

    Raises:
        ValueError: with the count.
    """
    bad = int(count.item())
    if bad:
        raise ValueError(
            f"logps, old_logps: {bad} tokens under the mask are not finite or differ by more than e^20; "
            'fix the scorer, mask them out, or pass on_bad="neutralise".'
        )


def finite_number(argument: str, value: object, minimum: float, *, strict: bool = False) -> float:
    """Return a knob as float when it is a finite number not below (strictly above) `minimum`.

    Raises:
        ValueError: naming the knob and the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f"{argument}: {value!r} is not a number.")
    if value < minimum or (strict and value == minimum):
        raise ValueError(f"{argument}: {value!r} must be {'>' if strict else '>='} {minimum:g}.")
    return float(value)
