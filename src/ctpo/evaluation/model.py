"""Loading a saved model and its tokenizer, with errors of one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ctpo import fast_cpu
from ctpo.errors import UserError
from ctpo.evaluation import adapters, smollm2
from ctpo.runs.files import special_file

HELDOUT_SEED = 20_260_508
"""The seed of held-out problems and of the noise they are sampled with. It never changes, so that figures can be
compared."""

SMALL = 10_000_000
"""A model with fewer parameters is small: it decodes a thousand rows as fast as thirty."""


_BOUNDS: Final = {
    "num_hidden_layers": (1, 10_000),
    "num_labels": (0, 100_000),
    "max_position_embeddings": (1, 2**40),
}
"""Numbers of a model's configuration, and what they can be."""


def load_model(
    location: str, *, dtype: Any = "float32", device: str = "cpu", **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode, and its tokenizer.

    A directory may hold a LoRA adapter. Its base model is then loaded and merged with it.

    Code that comes with the model is not run unless `trust_remote_code=True` is among the options.

    Args:
        location: a directory, a hub id, or `smollm2`.
        dtype, device: of the weights.
        options: further arguments of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        UserError: if either cannot be loaded, or if weights are missing or not finite.
    """
    tokenizer, _ = load_tokenizer(location, **_revision(options))
    location = _resolve(location)
    options = {"trust_remote_code": False, **options}  # left unset, transformers would ask on the terminal
    with _one_line_errors(location):
        base = adapters.base_model(location)
        model, report = AutoModelForCausalLM.from_pretrained(
            base or location, dtype=dtype, output_loading_info=True, **options
        )
        if base is not None:
            model = adapters.merged(model, location)
        _check_ends(model)
    if report["missing_keys"]:
        raise UserError(
            f"model {location} lacks {len(report['missing_keys'])} of its weights, for example "
            f"{sorted(report['missing_keys'])[0]}, which would stay random; save the model again with all of them"
        )
    for name, weight in model.named_parameters():
        # One pass without a mask as large as the weights: a sum is finite only if all of its terms are.
        if weight.is_floating_point() and not math.isfinite(weight.detach().sum(dtype=torch.float64).item()):
            raise UserError(f"model {location} holds NaN or infinity in {name}; use weights from before that")
    return model.to(device).eval(), tokenizer


def load_tokenizer(location: str, **options: Any) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer of a model, and the length of the model's context in tokens (None if its configuration has none).

    Raises:
        UserError: if they cannot be loaded.
    """
    location = _resolve(location)
    options = {"trust_remote_code": False, **options}
    with _one_line_errors(location):
        whole = adapters.base_model(location) or location
        _check_config(whole, options)
        tokenizer = AutoTokenizer.from_pretrained(location, padding_side="left", **options)
        tokenizer.decode(tokenizer("1 + 1 = 2\n")["input_ids"])  # some damage shows at the first use only
        config = AutoConfig.from_pretrained(whole, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, getattr(config.get_text_config(), "max_position_embeddings", None)


def model_folder(location: str) -> Path:
    """The folder that holds a model's files: a hub model's is in the hub's cache.

    Raises:
        UserError: if there is none.
    """
    from transformers.utils import cached_file

    location = _resolve(location)
    if Path(location).is_dir():
        return Path(location)
    with _one_line_errors(location):
        return Path(cached_file(location, "config.json")).parent


def _check_config(location: str, options: Mapping[str, Any]) -> None:
    """Check what transformers takes from a model's configuration without a question.

    Raises:
        ValueError: for attention from the hub, which is code, unless `trust_remote_code` is set; and for numbers with
            which loading would not end, or sampling would fail.
    """
    trusted = options["trust_remote_code"]
    known = {name: value for name, value in options.items() if name != "trust_remote_code"}
    waiting: list[Any] = [PreTrainedConfig.get_config_dict(location, **known)[0]]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(each)
            continue
        for name, value in each.items() if isinstance(each, dict) else ():
            if "attn_implementation" in name and "/" in json.dumps(value) and not trusted:
                raise ValueError(
                    f"{name} is {value!r}, which is code from the hub; take it out of config.json"
                )
            least, most = _BOUNDS.get(name, (-math.inf, math.inf))
            if isinstance(value, int) and not least <= value <= most:
                raise ValueError(f"{name} is {str(value)[:20]}, not {least} to {most}; correct config.json")
            waiting.append(value)


def _check_ends(model: PreTrainedModel) -> None:
    """Check that the tokens that end a response are numbers of tokens."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if any(
        type(each) is not int for each in (ends if isinstance(ends, list) else [ends]) if each is not None
    ):
        raise ValueError(f"eos_token_id is {ends!r}, no token's number; correct generation_config.json")


def _resolve(location: str) -> str:
    return str(smollm2.smollm2_path()) if location == smollm2.NAME else location


def _revision(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("revision", "trust_remote_code") if name in options}


@contextmanager
def _one_line_errors(location: str) -> Iterator[None]:
    """Turn errors of loading into a `UserError` of one line."""
    if Path(location).is_dir() and (odd := special_file(Path(location))):
        raise UserError(f"model {location} cannot be loaded: {odd.name} is not a regular file; remove it")
    try:
        yield
    except UserError:
        raise
    except (
        BaseException
    ) as error:  # damaged and foreign files make the libraries below raise whatever they meet
        if (
            not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        ):  # of Rust, in tokenizers
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        where = "" if Path(location).exists() else " (no such directory here, so taken for a hub id)"
        raise UserError(f"model {location}{where} cannot be loaded: {reason}") from None


def in_fastest_dtype(model: PreTrainedModel) -> PreTrainedModel:
    """The model in bfloat16 if it is on a CPU that computes in bfloat16; otherwise the model as it is.

    Other CPUs emulate bfloat16: on a Cascade Lake core, SmolLM2-135M's layers took 2 to 3 times as long as in float32.
    Small models stay in float32, because matrix products are not what takes their time.
    """
    slow = model.device.type != "cpu" or not fast_cpu.has_bfloat16() or model.num_parameters() < SMALL
    return model if slow else model.to(torch.bfloat16)


def choose_device() -> tuple[str, str]:
    """The device and the dtype to compute in: a GPU in bfloat16 if there is one, otherwise the CPU in float32."""
    return ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
