"""The policies of one measurement, checked to fit together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ctpo.errors import UserError
from ctpo.evaluation.identity import model_identity
from ctpo.evaluation.model import load_model
from ctpo.tasks.arithmetic import model_location
from ctpo.training.config.config import CTPOConfig


class Policies:
    """All models, checked to fit together. The behaviour policies are loaded when they sample."""

    def __init__(self, behaviours: Sequence[str], target: str, config: CTPOConfig) -> None:
        self._options = as_mapping(config.model_init_kwargs)
        for name in ("dtype", "torch_dtype"):
            self._options.pop(name, None)  # derivatives need float32
        self.target, self.tokenizer = self._load(target)
        self._name = target
        self.vocabulary = int(self.target.get_output_embeddings().weight.shape[0])
        self.identities = {each: model_identity(model_location(each)) for each in (target, *behaviours)}
        own, seen = _digest_of_weights(self.target), dict[str, str]()
        for each in behaviours:
            weights = _digest_of_weights(self.load(each))
            if weights == own:
                raise UserError(
                    f"{each} and {target} hold the same weights, so nothing has drifted and every unclipped objective "
                    "is on-policy; take two checkpoints that differ"
                )
            if weights in seen:
                raise UserError(f"{seen[weights]} and {each} hold the same weights; name one of them")
            seen[weights] = each

    def load(self, name: str) -> Any:
        """A model, which has the tokens of the target."""
        if name == self._name:
            return self.target
        model, tokenizer = self._load(name)
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"{name} and {self._name} have different tokenizers; compare checkpoints of one model"
            )
        size = int(model.get_output_embeddings().weight.shape[0])
        if size != self.vocabulary:
            raise UserError(
                f"{name} and {self._name} have vocabularies of {size} and {self.vocabulary} tokens; compare "
                "checkpoints of one model"
            )
        return model

    def _load(self, name: str) -> Any:
        return load_model(model_location(name), **self._options)


def as_mapping(value: Any) -> dict[str, Any]:
    """A copy of a setting that is a mapping by now, or empty."""
    return dict(value) if isinstance(value, Mapping) else {}


def _digest_of_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}:{weight.dtype}:{list(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
