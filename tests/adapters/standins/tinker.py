"""Tinker: a datum and its tensors, as a custom loss sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

TensorDtype = str
LossFnInputs = dict[str, "TensorData"]


@dataclass
class TensorData:
    data: Any
    dtype: TensorDtype
    shape: list[int] | None = None

    def to_torch(self) -> Tensor:
        return torch.from_numpy(np.asarray(self.data, dtype=self.dtype))


@dataclass
class ModelInput:
    tokens: list[int]

    @classmethod
    def from_ints(cls, tokens: list[int]) -> ModelInput:
        return cls(tokens)


@dataclass
class Datum:
    model_input: ModelInput
    loss_fn_inputs: LossFnInputs = field(default_factory=dict)
