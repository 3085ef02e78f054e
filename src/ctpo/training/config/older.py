"""Keys that scripts for older releases of TRL and transformers carry: what becomes of each, in a sentence.

TRL 1.16 and transformers 5 answer such a key with a TypeError. Here a key that has a successor sets it, and a key that
no longer does anything is accepted with a warning. This module imports neither torch nor TRL.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final


class OlderKeyWarning(FutureWarning):
    """A key of an older release of TRL or transformers was read or ignored."""


class _Switch(argparse.Action):
    """A word of the command line that sets a field: its name alone to True, and its name after `--no_` to False."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        negated = (option_string or "").lstrip("-").replace("-", "_") == f"no_{self.dest}"
        if negated and values is not True:
            parser.error(f"{option_string} takes no value")
        setattr(namespace, self.dest, False if negated else values)


def switch(name: str = "") -> dict[str, Any]:
    """Metadata of a field whose name alone, on a command line, means True.

    transformers' parser knows such switches only for fields that are boolean by default.

    Args:
        name: of a field whose default is or was True in TRL or transformers. Then `--no_NAME` means False, as it does
            there.
    """
    bare: dict[str, Any] = {"nargs": "?", "const": True}
    if not name:
        return bare
    return {**bare, "action": _Switch, "aliases": [f"--no_{name}", f"--no-{name.replace('_', '-')}"]}


def _flag(name: str = "") -> Any:
    return field(default=None, metadata=switch(name))


@dataclass
class OlderKeys:
    """The fields that GRPOConfig had in TRL 0.14 to 1.15, or TrainingArguments in transformers 4.46 to 4.57, and that
    are gone. All are None once a configuration is made."""

    # gone since TRL 0.18
    vllm_device: str | None = None
    vllm_dtype: str | None = None
    vllm_max_model_len: int | None = None
    vllm_enable_prefix_caching: bool | None = _flag("vllm_enable_prefix_caching")
    # gone since TRL 0.27
    wandb_log_unique_prompts: bool | None = _flag()
    # gone since TRL 0.28
    vllm_guided_decoding_regex: str | None = None
    use_liger_loss: bool | None = _flag()
    # gone since transformers 4.57
    evaluation_strategy: str | None = None
    dispatch_batches: bool | None = _flag()
    split_batches: bool | None = _flag()
    # gone since transformers 5
    no_cuda: bool | None = _flag()
    per_gpu_train_batch_size: int | None = None
    per_gpu_eval_batch_size: int | None = None
    warmup_ratio: float | None = None
    adafactor: bool | None = _flag()
    torchdynamo: str | None = None
    push_to_hub_model_id: str | None = None
    push_to_hub_token: str | None = None
    push_to_hub_organization: str | None = None
    logging_dir: str | None = None
    overwrite_output_dir: bool | None = _flag()
    save_safetensors: bool | None = _flag("save_safetensors")
    group_by_length: bool | None = _flag()
    include_tokens_per_second: bool | None = _flag()
    include_inputs_for_metrics: bool | None = _flag()
    use_mps_device: bool | None = _flag()
    half_precision_backend: str | None = None
    fp16_backend: str | None = None
    fp16_opt_level: str | None = None
    jit_mode_eval: bool | None = _flag()
    use_ipex: bool | None = _flag()
    use_legacy_prediction_loop: bool | None = _flag()
    past_index: int | None = None
    ray_scope: str | None = None
    mp_parameters: str | None = None
    tpu_num_cores: int | None = None
    tpu_metrics_debug: bool | None = _flag()
    fsdp_min_num_params: int | None = None
    fsdp_transformer_layer_cls_to_wrap: str | None = None


OLDER_KEYS: Final = tuple(each.name for each in fields(OlderKeys))


def _same(value: Any) -> Any:
    return value


_SUCCESSORS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "vllm_max_model_len": ("vllm_max_model_length", _same),
    "vllm_guided_decoding_regex": ("vllm_structured_outputs_regex", _same),
    "wandb_log_unique_prompts": ("log_unique_prompts", _same),
    "evaluation_strategy": ("eval_strategy", _same),
    "no_cuda": ("use_cpu", _same),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", _same),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size", _same),
    "warmup_ratio": ("warmup_steps", _same),
    "adafactor": ("optim", lambda on: "adafactor" if on else None),
    "torchdynamo": ("torch_compile_backend", _same),
    "push_to_hub_model_id": ("hub_model_id", _same),
    "push_to_hub_token": ("hub_token", _same),
}
"""Keys that live on under another name: the name, and the value there (None: the key asks for nothing)."""
_CARRIED_OUT: Final[Mapping[str, str]] = {
    "use_liger_loss": "the objective takes the place of that loss, and completion_head saves the same memory",
    "vllm_device": "vLLM runs where vllm_mode says: colocate shares the device, and a server has its own",
    "vllm_dtype": "vLLM takes the format of the model's weights",
    "vllm_enable_prefix_caching": "vLLM decides that itself",
    "logging_dir": "TensorBoard's files go to output_dir/runs, or to the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "nothing is deleted; train(resume_from_checkpoint=…) decides what a run continues from",
    "save_safetensors": "weights are always saved as safetensors",
    "group_by_length": "rollout batches are drawn prompt by prompt",
    "include_tokens_per_second": "the logs hold num_tokens and step_time",
    "include_inputs_for_metrics": "rewards take the place of metrics",
    "use_mps_device": "an Apple GPU is used if there is one",
    "push_to_hub_organization": "write hub_model_id='organization/name'",
    "fsdp_min_num_params": "write it into fsdp_config, as min_num_params",
    "fsdp_transformer_layer_cls_to_wrap": "write it into fsdp_config, as transformer_layer_cls_to_wrap",
    "dispatch_batches": "write it into accelerator_config",
    "split_batches": "write it into accelerator_config",
}
"""What does the work of a key, or makes it needless."""
_DECISIVE: Final = (
    *("push_to_hub_organization", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"),
    *("dispatch_batches", "split_batches"),
)
"""Keys whose loss would change what a run does, so that they are refused where they ask for something."""


def read_older_keys(
    given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """What older keys set today, a sentence for each that was read, and one for each that cannot be.

    Args:
        given: settings by name, those of today and older ones.
        defaults: of the settings of today.
    """
    changes: dict[str, Any] = {}
    sentences: list[str] = []
    refused: list[str] = []
    for key in OLDER_KEYS:
        value = given.get(key)
        if value is None:
            continue
        if key in _SUCCESSORS:
            name, convert = _SUCCESSORS[key]
            wanted, held = convert(value), given.get(name)
            if wanted is None:
                sentences.append(f"{key}={value!r} asks for nothing, and the key is gone; drop it")
            elif held is not None and held not in (defaults.get(name), wanted):
                refused.append(f"{key}={value!r} is an older name of {name}, which is {held!r}; drop {key}")
            else:
                changes[name] = wanted
                sentences.append(f"{key}={value!r} is read as {name}={wanted!r}, its name today")
        elif key in _DECISIVE and value:
            refused.append(f"{key}={value!r} is gone; {_CARRIED_OUT[key]}")
        else:
            reason = _CARRIED_OUT.get(key, "transformers has dropped it")
            sentences.append(f"{key}={value!r} has no effect: {reason}")
    return changes, sentences, refused
