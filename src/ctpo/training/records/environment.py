"""The machine and the software that a run used, so that it can be repeated."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ctpo.version import __version__

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")


def describe_environment(processes: int = 1) -> dict[str, Any]:
    """The content of `environment.json`: versions, machine, number of processes, and command line."""
    return {
        "ctpo": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "processes": processes,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
