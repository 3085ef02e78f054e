"""The streaming pass as one C function, compiled by the machine's own C compiler on first use (about a second).

One loop does per token what the definition does in some forty passes, so it needs no memory besides the outputs.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives.cpu.plan import Plan
from ctpo.objectives.numerics import EXP_CAP, FAR, SATURATION
from ctpo.objectives.ratios import (
    CumulativeRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    Ratio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.stats import Sums
from ctpo.objectives.surrogates import Linear, MinClip

RATIOS: Final[dict[type[Ratio], int]] = {
    TokenRatio: 0,
    CumulativeRatio: 1,
    PrefixMeanRatio: 2,
    SequenceRatio: 3,
    SequenceMeanRatio: 3,
    MinPrefixRatio: 4,
    UnitRatio: 5,
}
SUMS: Final = (
    "tokens", "sequences", "usable", "nonfinite", "saturated", "high", "low", "dual", "x", "xx", "weight",
    "weight_squared", "d", "dd", "k3", "lowest", "highest",
)  # fmt: skip
"""In the order of the C enumeration; the loss follows."""

FLAGS: Final = (
    "-O3 -march=native -fopenmp-simd -fno-math-errno -fno-trapping-math -ffp-contract=off -shared -fPIC"
)
"""Nothing that reassociates or assumes away NaN: sums are reduced by declared loops alone."""


class _Plan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("ratio", "by_sign", "advantage_per_token")),
        *(
            (name, ctypes.c_double)
            for name in (
                "low", "high", "dual", "power", "ceiling", "widest", "log_cap", "exp_cap", "saturation", "far",
            )
        ),
    ]  # fmt: skip


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        ValueError: no C compiler, or one that fails.
    """
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    mend = 'install gcc or clang, name one in CC, or use backend="auto"'
    if compiler is None:
        raise ValueError(f'backend: "native" found no C compiler; {mend}.')
    source = Path(__file__).with_name("native.c")
    with tempfile.TemporaryDirectory(prefix="ctpo-") as folder:
        target = Path(folder) / "native.so"
        command = [*compiler.split(), *FLAGS.split(), "-o", str(target), str(source), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(
                f'backend: "native": {command[0]} failed ({done.stderr[-300:].strip()}); {mend}.'
            )
        return ctypes.CDLL(str(target))  # stays mapped after the folder is gone


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether the functions could be compiled here."""
    try:
        return library() is not None
    except ValueError:
        return False


class NativePass:
    """One forward pass over padded rows, or over the segments of a packed stream."""

    def __init__(
        self, plan: Plan, logps: Tensor, old_logps: Tensor, mask: Tensor, advantages: Tensor, factor: Tensor,
        sums: Sums, starts: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.dtype, self.sums, (rows, length) = advantages.dtype, sums, logps.shape
        every_row = torch.arange(0, (rows + 1) * length, length)
        self.edges = every_row if starts is None else torch.tensor([*starts, length])
        per_token = advantages.shape[-1] == length
        self.mean = isinstance(plan.ratio, SequenceMeanRatio)
        self.factor_kind = 0 if factor.ndim == 0 else 1 if factor.shape[-1] == 1 < length else 2
        self.inputs = [x.to(self.dtype).contiguous() for x in (logps, old_logps)]
        self.inputs += [mask.contiguous(), *(x.to(self.dtype).contiguous() for x in (advantages, factor))]
        self.plan = _plan(plan, length, per_token)

    def fill(
        self, loss: Tensor, active: Tensor | None, slope: Tensor | None, kept: Tensor | None,
        grad: Tensor | None,
    ) -> float:  # fmt: skip
        """Fill the outputs, add to the sums, and return the loss."""
        run = _function("run", self.dtype)
        sums = (ctypes.c_double * (len(SUMS) + 1))()
        sums[SUMS.index("lowest")], sums[SUMS.index("highest")] = FAR, -FAR
        logps, old, mask, advantages, factor = (_address(x) for x in self.inputs)
        run(
            ctypes.byref(self.plan), ctypes.c_int64(len(self.edges) - 1), _address(self.edges),
            ctypes.c_int64(self.mean), logps, old, mask, advantages, factor, ctypes.c_int64(self.factor_kind),
            _address(loss), _address(active), _address(slope), _address(kept), _address(grad), sums,
        )  # fmt: skip
        for name, value in zip(SUMS, sums, strict=False):
            setattr(self.sums, name, value)
        return float(sums[len(SUMS)])


def _function(name: str, dtype: torch.dtype) -> ctypes._NamedFuncPointer:
    function = library()[f"{name}_{'double' if dtype == torch.float64 else 'float'}"]
    function.restype = None
    return function


def _plan(plan: Plan, length: int, per_token: bool) -> _Plan:
    bases, linear = plan.bases, isinstance(plan.surrogate, Linear)
    bounds = [b for b in (bases.upper, bases.dual) if b is not None and not math.isinf(b)]
    ceiling = plan.ceiling(length)
    return _Plan(
        ratio=RATIOS[type(plan.ratio)],
        by_sign=isinstance(plan.surrogate, MinClip),
        advantage_per_token=per_token,
        low=-FAR if linear else max(bases.lower, -FAR),
        high=FAR if linear else min(bases.upper, FAR),
        dual=FAR if bases.dual is None else min(bases.dual, FAR),
        power=bases.power,
        ceiling=math.nan if ceiling is None else ceiling,
        widest=max(bounds, default=0.0),
        log_cap=plan.ratio.log_cap,
        exp_cap=EXP_CAP,
        saturation=SATURATION,
        far=FAR,
    )


def _address(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())
