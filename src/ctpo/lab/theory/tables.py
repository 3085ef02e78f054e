"""Reading the logits of two policies, and rewards, from a JSON or npz file."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.runs.files import read_bytes, read_text

_FORMAT = "behaviour and target as tables [rows, V], optional reward [V^T] and horizon"


@dataclass(frozen=True)
class PolicyTables:
    """The tables in a file.

    Attributes:
        behaviour: logits of b, [G, V].
        target: logits of π, [G, V].
        reward: of every trajectory, [V^T]; None if the file has none.
        horizon: T; None if the file does not give it.
    """

    behaviour: Tensor
    target: Tensor
    reward: Tensor | None
    horizon: int | None

    @property
    def vocab(self) -> int:
        """V, the number of actions."""
        return self.target.shape[1]


def read_tables(path: Path) -> PolicyTables:
    """Return the tables `behaviour` and `target` of a file, and its `reward` and `horizon` if it has them.

    Raises:
        UserError: if the file cannot be read, or holds something else.
    """
    try:
        content = _load(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); use a JSON or npz file"
        ) from None
    except (
        ValueError,
        RecursionError,
        LookupError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else "damaged"
        raise UserError(f"{path} is not a JSON or npz file ({reason}); it should hold {_FORMAT}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; it should hold {_FORMAT}")
    unknown = set(content) - {"behaviour", "target", "reward", "horizon"}
    if unknown:
        raise UserError(f"{path}: {min(unknown)!r} is unknown; it should hold {_FORMAT}")
    behaviour, target = (_table(path, content, name, 2) for name in ("behaviour", "target"))
    if behaviour.shape != target.shape:
        raise UserError(
            f"{path}: behaviour is {tuple(behaviour.shape)} and target {tuple(target.shape)}; make them the same shape"
        )
    reward = _table(path, content, "reward", 1) if "reward" in content else None
    return PolicyTables(behaviour, target, reward, _horizon(path, content))


def _load(path: Path) -> Any:
    if path.suffix == ".npz":
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}
    return json.loads(read_text(path))


def _table(path: Path, content: dict[str, Any], name: str, dimensions: int) -> Tensor:
    if name not in content:
        raise UserError(f"{path} has no {name!r}; it should hold {_FORMAT}")
    try:
        table = torch.tensor(content[name], dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError):
        raise UserError(f"{path}: {name} is not a table of numbers; use {dimensions} dimension(s)") from None
    if table.dim() != dimensions or table.numel() == 0:
        raise UserError(f"{path}: {name} has shape {tuple(table.shape)}; use {dimensions} dimension(s)")
    return table


def _horizon(path: Path, content: dict[str, Any]) -> int | None:
    horizon = content.get("horizon")
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int)):
        raise UserError(f"{path}: horizon {horizon!r} is not a whole number; give the number of steps")
    return horizon
