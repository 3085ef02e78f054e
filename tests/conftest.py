"""Fixtures that several rooms share; the expensive ones are made once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network is a defect


@pytest.fixture(scope="session")
def embedded() -> Any:
    """The model that ships with the package, and its tokenizer."""
    import torch

    from ctpo.evaluation.model import load_model
    from ctpo.tasks.arithmetic import model_path

    torch.set_num_threads(1)
    return load_model(str(model_path()))


@pytest.fixture(scope="session")
def arithmetic() -> Any:
    """The embedded task."""
    from ctpo.tasks import get_task

    return get_task("arithmetic")


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Any]:
    """One real sandbox for every test that only needs programs run."""
    from ctpo.sandbox import Sandbox

    with Sandbox() as sandbox:
        yield sandbox
