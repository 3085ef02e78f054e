"""LoRA adapters as peft saves them: the model they belong to, and that model merged with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from transformers import PreTrainedModel

from ctpo.extras import require
from ctpo.runs.files import read_bytes

CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"


def base_model(location: str) -> str | None:
    """The directory or hub id of the model that the adapter in a folder was trained on; None if it holds no adapter.

    Raises:
        MissingExtra: if it does, and peft is not installed.
        ValueError: if the adapter is no LoRA adapter in safetensors, or its model is an adapter itself.
    """
    folder = Path(location)
    if (folder / "config.json").is_file() or not (folder / CONFIG).is_file():
        return None
    content = json.loads(read_bytes(folder / CONFIG))
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(base, str) or content.get("peft_type") != "LORA" or not (folder / _WEIGHTS).is_file():
        raise ValueError(
            f"{CONFIG} is not of a LoRA adapter in {_WEIGHTS} with a base model; merge it with peft"
        )
    if (Path(base) / CONFIG).is_file():
        raise ValueError(f"its base model {base} is an adapter too; merge that first")
    require(f"the adapter in {location}", "peft", "peft")
    return base


def merged(model: PreTrainedModel, location: str) -> PreTrainedModel:
    """The model with the adapter of a folder added to its weights."""
    from peft import PeftModel

    whole: PreTrainedModel = PeftModel.from_pretrained(model, location).merge_and_unload()
    return whole
