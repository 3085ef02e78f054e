"""What a stored evaluation is bound to, by content: what its responses were sampled with, and what judged them.

Paths and names are no part of it, and neither are the versions of torch and transformers, nor the machine.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import ctpo.tasks
from ctpo.errors import UserError
from ctpo.evaluation.model import model_folder
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import FunctionTool, Task
from ctpo.tasks.guard import Guarded
from ctpo.tasks.own import files_of

_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth")
"""Files of weights; of several kinds, transformers loads the first."""
_CONFIGURATIONS: Final = ("config.json", "generation_config.json", "adapter_config.json")
_TOKENIZER: Final = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template*", "additional_chat_templates/*"),
)
_DECIDES_NOTHING: Final = ("transformers_version", "_name_or_path")
"""Keys of a model's configuration that a new version of transformers changes, and that change no response."""
_JUDGES: Final = ("math-verify", "latex2sympy2_extended", "sympy", "reasoning-gym")
"""The packages that the shipped judges ask."""
_LONGEST_CHAIN: Final = 3  # of adapters on adapters


def model_identity(location: str) -> dict[str, str]:
    """Digests of a model's weights (with its configuration) and of its tokenizer (with its chat template).

    The files are read in full: a billion parameters in bfloat16 take about two seconds.

    Args:
        location: a directory, a hub id, or `smollm2`.

    Raises:
        UserError: if there are no such files.
    """
    weights: list[str] = []
    place: str | None = location
    while place is not None and len(weights) < _LONGEST_CHAIN:
        folder = model_folder(place)
        weights.append(_weights(folder))
        place = _base_of(folder)
    return {
        "weights": _digest(weights),
        "tokenizer": _digest_of_files(_files(model_folder(location), _TOKENIZER)),
    }


def sampled_with(
    task: Task, sampling: Sampling, model: dict[str, str], **settings: Any
) -> dict[str, str | int | float | None]:
    """What the responses to one problem depend on, besides the problem itself: the name of each part, and its value.

    Args:
        task: its system message, worked examples and tools count, and the source of each function among these; its
            problems are compared one by one.
        sampling: how tokens are drawn.
        model: `model_identity`, or the URL and name of a model behind an endpoint.
        settings: further settings: the seed, the number of samples, the dtype.
    """
    environment = {} if task.environment is None else {"environment": _of_environment(task)}
    return {
        **model,
        **environment,
        "prompt": _digest(task.messages("") if task.conversational else None),
        **({"template": _digest(dict(task.template_kwargs))} if task.template_kwargs else {}),
        "tool": _digest(None if task.tool is None else asdict(task.tool)),
        **({"tools": _digest([_declared(each) for each in task.functions])} if task.functions else {}),
        **vars(sampling),
        **settings,
    }


def judged_with(task: Task) -> str:
    """A digest of what judges the answers of a task.

    For the judges of this package it covers their source and the versions of the packages that they ask. For a task
    of one's own it covers the source files of the task, its check and its `extract`.
    """
    own = Path(ctpo.tasks.__file__).parent
    ours = set(own.rglob("*.py"))
    files = set(files_of(task))
    for part in (task.check or task.environment, task.extract):
        source = _source(part)
        if source is not None:
            files |= ours if isinstance(part, Guarded) or source.is_relative_to(own) else set()
            files |= set() if source.is_relative_to(own) else {source}
    shipped = any(path.is_relative_to(own) for path in files)
    versions = [_version(name) for name in _JUDGES] if shipped else []
    return _digest([_digest_of_files(sorted(files)), versions])


def _of_environment(task: Task) -> str:
    """A digest of the files of a task's environment, and of its limits."""
    source = _source(task.environment)
    files = sorted({*files_of(task), *(() if source is None else (source,))})
    return _digest([_digest_of_files(files), task.max_turns])


def _declared(tool: FunctionTool) -> list[Any]:
    """What a function's results depend on, as far as it can be seen. What the function itself calls is left out."""
    try:
        source = inspect.getsource(inspect.unwrap(tool.function))
    except (OSError, TypeError):
        source = ""
    return [tool.schema, tool.timeout_s, tool.max_calls, tool.max_result_chars, source]


def _weights(folder: Path) -> str:
    kinds = (_files(folder, [kind]) for kind in _WEIGHTS)
    configurations = [_configuration(path) for path in _files(folder, _CONFIGURATIONS)]
    return _digest([_digest_of_files(next((files for files in kinds if files), [])), configurations])


def _configuration(path: Path) -> Any:
    content = _json(path)
    if isinstance(content, dict):
        return {name: value for name, value in content.items() if name not in _DECIDES_NOTHING}
    return content


def _base_of(folder: Path) -> str | None:
    """The model that a folder's adapter was trained on."""
    path = folder / "adapter_config.json"
    content = _json(path) if path.is_file() else None
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    return base if isinstance(base, str) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); save the model again") from None


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _digest_of_files(files: list[Path]) -> str:
    try:
        with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock to the others
            return _digest(list(zip([path.name for path in files], pool.map(_hash, files), strict=True)))
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}); see to its permissions"
        ) from None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # processors have instructions for it


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _source(part: Callable[..., Any] | None) -> Path | None:
    """The file in which a function, a method or the class of a callable object is defined."""
    while isinstance(part, partial | Guarded):
        part = part.func if isinstance(part, partial) else part.function
    if part is None:
        return None
    name = getattr(part, "__module__", None) or type(part).__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    return None if file is None else Path(file)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
