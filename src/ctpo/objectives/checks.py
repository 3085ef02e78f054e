"""Checks of a caller's arguments: shapes and dtypes always, values where reading them is free."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives.numerics import POSITIVE_LOGP, reads_are_free

_LARGEST: Final = torch.finfo(torch.float32).max

_WARNED: set[str] = set()
"""What this process has been warned of."""


def choice(argument: str, value: object, known: Iterable[str]) -> str:
    """The value, which is one of the known ones.

    Raises:
        ValueError: naming the value, the nearest match and the known ones.
    """
    known = sorted(known)
    if isinstance(value, str) and value in known:
        return value
    # A knob is also recognised without its unit ("hihg" is near "log_high"), and a preset by its family ("dppo").
    spellings = {name.partition("-")[0]: name for name in known}
    spellings |= {name.rpartition("_")[2]: name for name in known} | {name: name for name in known}
    near = get_close_matches(str(value).lower(), spellings, n=1)
    hint = f"; did you mean {spellings[near[0]]!r}?" if near else "."
    raise ValueError(f"{argument}: {value!r} is not known{hint} Known: {', '.join(known)}.")


def batch(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    per_sequence: tuple[int, ...],
    weights: Tensor | None = None,
    rejection_mask: Tensor | None = None,
) -> None:
    """Check the shapes and dtypes of one call, and warn of half precision.

    Args:
        per_sequence: the shape of one value per sequence.

    Raises:
        ValueError: naming the argument, what it holds and what to do.
    """
    floats = {"logps": logps, "old_logps": old_logps, "advantages": advantages, "weights": weights}
    masks = {"response_mask": response_mask, "rejection_mask": rejection_mask}
    for name, value in {**floats, **masks}.items():
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(
                f"{name}: expected a torch.Tensor, got {type(value).__name__}; convert it first."
            )
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise ValueError(f"{name}: layout {value.layout} is not dense; convert it with .to_dense().")
    for name, value in floats.items():
        if value is not None and not value.is_floating_point():
            raise ValueError(f"{name}: dtype {value.dtype} is not floating point; convert it with .float().")
    for name, value in {"old_logps": old_logps, **masks}.items():
        if value is not None and value.shape != logps.shape:
            raise ValueError(
                f"{name}: shape {tuple(value.shape)} differs from logps {tuple(logps.shape)}; "
                "score and mask the same tokens."
            )
    for name, value in {"advantages": advantages, "weights": weights}.items():
        if value is not None and value.shape != logps.shape and tuple(value.shape) != per_sequence:
            raise ValueError(
                f"{name}: shape {tuple(value.shape)}; expected {per_sequence} (one per sequence) "
                f"or {tuple(logps.shape)} (one per token)."
            )
    for name, value in masks.items():
        if value is not None:
            mask_values(name, value)
    gradient(logps, old_logps)
    warn_low_precision(logps, old_logps)


def packing(logps: Tensor, segment_ids: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Check that the arguments describe exactly one layout.

    Raises:
        ValueError: naming the argument and what to do.
    """
    if not isinstance(logps, Tensor) or logps.ndim not in (1, 2):
        shape = tuple(logps.shape) if isinstance(logps, Tensor) else type(logps).__name__
        raise ValueError(f"logps: {shape}; expected a tensor [B, T], or [N] with segment_ids or cu_seqlens.")
    given = [name for name, x in (("segment_ids", segment_ids), ("cu_seqlens", cu_seqlens)) if x is not None]
    if logps.ndim == 2 and given:
        raise ValueError(f"{given[0]}: logps are padded [B, T]; leave it out, or pass packed tokens [N].")
    if logps.ndim == 1 and len(given) != 1:
        raise ValueError("segment_ids, cu_seqlens: packed tokens [N] need exactly one of them.")


def segment_ids(ids: Tensor, length: int, segments: int | None, whole: bool) -> None:
    """Check the segment ids of packed tokens; their values only where reading them is free.

    Args:
        ids: of the local tokens.
        length: number of local tokens.
        segments: number of values per sequence that must cover the ids; None if there are none.
        whole: false for a shard, whose tokens may come in any order.

    Raises:
        ValueError: the wrong shape or dtype, numbers out of range, or ids that decrease.
    """
    if ids.ndim != 1 or ids.shape[0] != length or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"segment_ids: {ids.dtype} {tuple(ids.shape)}; expected [{length}] integers.")
    if length == 0 or not reads_are_free(ids):
        return
    low, high = int(ids.min()), int(ids.max())
    segment_numbers(low, high, segments)
    if whole and bool((ids.diff() < 0).any()):
        raise ValueError(
            "segment_ids: they decrease somewhere; the tokens of a segment must lie together, in order."
        )


def turns(turn_ids: Tensor, shape: tuple[int, ...]) -> None:
    """Check that there is one integer per token.

    Raises:
        ValueError: the wrong shape or dtype.
    """
    if not isinstance(turn_ids, Tensor):
        raise ValueError(f"turn_ids: {type(turn_ids).__name__}; expected a tensor of {shape} integers.")
    wrong_kind = turn_ids.is_floating_point() or turn_ids.dtype == torch.bool
    if wrong_kind or tuple(turn_ids.shape) != shape:
        raise ValueError(
            f"turn_ids: {turn_ids.dtype} {tuple(turn_ids.shape)}; expected {shape} integers, the turn of each token."
        )


def segment_numbers(low: int, high: int, segments: int | None) -> None:
    """Refuse numbers of segments outside of 0..segments − 1.

    Raises:
        ValueError: with the lowest and the highest number.
    """
    if low < 0 or (segments is not None and high >= segments):
        most = "" if segments is None else f" to {segments - 1}, as there are {segments} advantages"
        raise ValueError(f"segment_ids: values from {low} to {high}; expected 0{most}.")


def mask_values(name: str, mask: Tensor) -> None:
    """Refuse a mask with values other than 0 and 1. Looks only where reading values is free.

    Raises:
        ValueError: with one such value.
    """
    if mask.dtype == torch.bool or not reads_are_free(mask):
        return
    wrong = (mask != 0) & (mask != 1)
    if bool(wrong.any()):
        raise ValueError(f"{name}: value {mask[wrong][0].item()} is neither 0 nor 1; pass a boolean mask.")


def gradient(logps: Tensor, old_logps: Tensor) -> None:
    """Refuse a call whose gradient would be lost because the two arguments are swapped.

    Raises:
        ValueError: old_logps requires a gradient and logps does not.
    """
    if old_logps.requires_grad and not logps.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "logps, old_logps: old_logps requires a gradient and logps does not; they are swapped (the current "
            "policy comes first), or old_logps must be detached."
        )


def warn_low_precision(logps: Tensor, old_logps: Tensor) -> None:
    """Warn once per process of log-probs in half precision, whose rounding cannot be undone."""
    half = [str(x.dtype) for x in (logps, old_logps) if x.dtype in (torch.bfloat16, torch.float16)]
    if half:
        _warn_once(
            "half precision",
            f"log-probs arrived in {half[0]}: their rounding flips 5-9 % of clip decisions at 1k-64k tokens. "
            "Compute log-softmax in float32 and keep the result there.",
            stacklevel=6,
        )


def warn_positive(count: Tensor) -> None:
    """Warn once per process of inputs that are no log-probs. Looks only where reading a value is free.

    Args:
        count: 0-d, the number of tokens under the mask with such a value.
    """
    if "positive" not in _WARNED and reads_are_free(count) and count.item() > 0:
        _warn_once(
            "positive",
            f"logps, old_logps: {int(count)} tokens under the mask have a log-prob above {POSITIVE_LOGP:g}; pass "
            "log-softmax of the sampled tokens, not probabilities or logits (stats count them: positive_logps).",
            stacklevel=5,
        )


def _warn_once(subject: str, message: str, stacklevel: int) -> None:
    if subject not in _WARNED and not torch.compiler.is_compiling():
        _WARNED.add(subject)
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


def unusable_tokens(count: Tensor) -> None:
    """Refuse a batch with unusable tokens under the mask, for `on_bad="raise"`. Reads a value from the device.

    Raises:
        ValueError: with the number of such tokens.
    """
    bad = int(count.item())
    if bad:
        raise ValueError(
            f"logps, old_logps: {bad} tokens under the mask are not finite or differ by more than 20 nats; "
            'fix the scorer, mask them out, or pass on_bad="neutralise".'
        )


def number(argument: str, value: object, minimum: float, *, strict: bool = False) -> float:
    """A knob as a float: a number, infinity included, that is at least `minimum`, or above it if `strict`.

    A finite number must be one in float32 too, in which most calls compute.

    Raises:
        ValueError: naming the knob and the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f"{argument}: {value!r} is not a number.")
    if value < minimum or (strict and value == minimum):
        raise ValueError(f"{argument}: {value!r} must be {'>' if strict else '>='} {minimum:g}.")
    if _LARGEST < abs(value) < math.inf:
        shown = repr(value) if isinstance(value, float) else f"an integer of {len(str(abs(value)))} digits"
        raise ValueError(
            f"{argument}: {shown} is beyond float32, which ends at {_LARGEST:.1e}; use a smaller number."
        )
    return float(value)


def flag(argument: str, value: object) -> bool:
    """A knob that is true or false, and nothing that only counts as such.

    Raises:
        ValueError: naming the knob and the value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{argument}: {value!r} is neither True nor False.")
    return value


def finite(argument: str, value: object, minimum: float = -math.inf) -> float:
    """A knob as a float: a finite number that is at least `minimum`.

    Raises:
        ValueError: naming the knob and the value.
    """
    checked = number(argument, value, minimum)
    if math.isinf(checked):
        raise ValueError(f"{argument}: {value!r} must be finite.")
    return checked
