"""CTPOTrainer takes the arguments of the installed TRL by name, so that a misspelled one is refused."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOTrainer
from typing_extensions import get_protocol_members

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.training.view import TrainerView

ROOT = Path(__file__).parent.parent.parent


def test_the_arguments_are_those_of_the_installed_trl() -> None:
    """If this fails after an upgrade of TRL, take its new arguments over into CTPOTrainer.__init__."""

    def names_and_defaults(trainer: type) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(trainer.__init__).parameters.values()  # type: ignore[misc]
        return [(each.name, each.default, each.kind) for each in parameters]

    own = ("task", None, inspect.Parameter.KEYWORD_ONLY)
    assert names_and_defaults(CTPOTrainer) == [*names_and_defaults(GRPOTrainer), own]


def test_every_argument_reaches_trl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An argument that CTPOTrainer took and did not hand on would be ignored without a word."""

    class Reached(Exception):
        pass

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(original).bind(self, *args, **kwargs)
        raise Reached({name: value for name, value in bound.arguments.items() if name != "self"})

    original = GRPOTrainer.__init__
    names = list(inspect.signature(original).parameters)[1:]
    given: dict[str, Any] = {name: f"the {name}" for name in names}
    given["tools"] = [abs]
    given["args"] = CTPOConfig(str(tmp_path), use_cpu=True, keep_freed_memory=False)
    monkeypatch.setattr(GRPOTrainer, "__init__", init)
    with pytest.raises(Reached) as reached:
        CTPOTrainer(**given)
    assert reached.value.args[0] == given


def test_a_misspelled_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'train_datasets'"):
        CTPOTrainer("unused", train_datasets=None)  # type: ignore[call-arg]


def test_mypy_refuses_a_misspelled_argument(tmp_path: Path) -> None:
    """With the cache that `make types` leaves it takes three seconds, without it half a minute."""
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from ctpo import CTPOConfig, CTPOTrainer\n"
        'CTPOTrainer("model", args=CTPOConfig("out"), train_dataset=None)\n'
        'CTPOTrainer("model", args=CTPOConfig("out"), train_datasets=None)\n'
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "mypy", "--strict", str(snippet)]
    ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    errors = [line for line in ran.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, ran.stdout + ran.stderr
    assert 'snippet.py:3: error: Unexpected keyword argument "train_datasets"' in errors[0]


def test_the_trainer_provides_all_that_its_parts_may_know(fit: Callable[..., Any]) -> None:
    """A type checker cannot tell: the trainer's base class is TRL's, whose types are unknown to it."""
    trainer = fit(CTPOTrainer, CTPOConfig, max_steps=1)
    missing = [name for name in get_protocol_members(TrainerView) if not hasattr(trainer, name)]
    assert not missing
